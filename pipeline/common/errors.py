"""The one exception a user can cause, and what libraries' exceptions say."""


class UserError(Exception):
    """Something the user can act on: bad input, a missing file, an unreachable endpoint.

    The message is one clear sentence or two: it names the file and the field, says what was found
    and what to do. The command line prints it without a traceback and exits with status 2.
    """


def with_causes(error: BaseException | None) -> str:
    """An exception and its causes in one line: DVC's own says little."""
    words = []
    while error is not None:
        words.append(" ".join(str(error).split()))
        error = error.__cause__
    return ": ".join(words)
