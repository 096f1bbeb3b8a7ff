"""The judge of a rehearsal: a score that depends on what it is asked, and means nothing."""


def reply(prompt: str) -> str:
    """A score from 0 to 100 for one prompt."""
    return str(sum(prompt.encode()) % 101)
