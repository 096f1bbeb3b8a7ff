"""What is asked of one model at a time, as stage sample asks it: how many answers, and how long prompts are."""

from collections import Counter
from dataclasses import dataclass, field

from pipeline.data.prompts import Prompt
from pipeline.doctor.assumed import prompts_of
from pipeline.judging.estimate import BYTES_PER_TOKEN
from pipeline.params.schema import Run, Study

# A prompt is at most a token every three bytes, and what the chat template writes around it: so is every prompt of the
# pinned suites in the vocabularies of Mixtral, Qwen3 and gpt-oss (whose template writes 68 tokens).
LEAST_BYTES_A_TOKEN, TEMPLATE_TOKENS = 3, 80


@dataclass(frozen=True)
class Asked:
    """How often each question is asked, the bytes of all those prompts, and those of the longest."""

    questions: Counter[str] = field(default_factory=Counter)
    size: int = 0
    longest: int = 0

    def __add__(self, other: "Asked") -> "Asked":
        return Asked(self.questions + other.questions, self.size + other.size, max(self.longest, other.longest))

    def times(self, count: int) -> "Asked":
        """The same, `count` times over."""
        if not count:
            return Asked()
        questions = Counter({question: count * each for question, each in self.questions.items()})
        return Asked(questions, count * self.size, self.longest)

    @property
    def answers(self) -> int:
        """How many answers that makes."""
        return self.questions.total()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts together, about."""
        return round(self.size / BYTES_PER_TOKEN)

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest prompt, at most."""
        return -(-self.longest // LEAST_BYTES_A_TOKEN) + TEMPLATE_TOKENS


def asked_of(study: Study, suites: tuple[str, ...], seed: int, samples: int) -> Asked:
    """What one seed's model is asked: every prompt of the suites `samples` times, or as often as it says itself.

    Raises UserError for a suite that is neither here nor of known size.
    """
    prompts = [prompt for name in suites for prompt in prompts_of(study, name, seed)]
    times: Counter[Prompt] = Counter()
    for prompt in prompts:
        times[prompt] += prompt.samples or samples
    return counted(study, times)


def asked_along(study: Study, run: Run, seed: int) -> Asked:
    """What one of the adapters that are kept along a run's training is asked; nothing where none is kept."""
    if run.trajectory is None:
        return Asked()
    prompts = [prompt for name in study.held_out for prompt in prompts_of(study, name, seed)]
    return counted(study, Counter(dict.fromkeys(prompts, run.trajectory.samples_per_prompt)))


def counted(study: Study, times: Counter[Prompt]) -> Asked:
    """What it makes that each prompt is asked so often."""
    questions: Counter[str] = Counter()
    size = longest = 0
    for prompt, count in times.items():
        length = prompt_bytes(study, prompt)
        questions[prompt.question] += count
        size += count * length
        longest = max(longest, length)
    return Asked(questions, size, longest)


def prompt_bytes(study: Study, prompt: Prompt) -> int:
    """The bytes of a prompt as it is asked."""
    said = sum(len(message.content.encode()) for message in prompt.messages)
    return said + (len((study.sampling.system or "").encode()) if prompt.system is None else 0)
