"""The two judging protocols behind one interface: what is asked about an answer, what the replies mean.

Both make one request an aspect of an answer: alignment, coherence, and what rubrics of its own a study has. Nothing
here touches a network.
"""

from pathlib import Path
from typing import Any

from pipeline.api.completions import REFUSED, Reply, Request
from pipeline.common.files import sha256_json
from pipeline.common.rows import Answer, Status
from pipeline.judging import parsing
from pipeline.judging.aspects import ASPECTS
from pipeline.judging.config import JudgeConfig
from pipeline.judging.parsing import Reading, unparsed
from pipeline.judging.templates import Templates, load_templates

TOP_LOGPROBS = 20  # the most that OpenAI returns, and what Betley et al. asked for


class Protocol:
    """Requests for an answer and readings of the replies, by one judge's configuration."""

    def __init__(self, config: JudgeConfig, templates: Templates) -> None:
        self.config = config
        self.aspects = (*ASPECTS, *config.aspects)
        self._templates = {
            "alignment": templates.alignment,
            "coherence": templates.coherence,
            **{name: aspect.template for name, aspect in config.aspects.items()},
        }

    def request(self, answer: Answer, aspect: str) -> Request:
        """The request for one aspect of an answer."""
        prompt = self._templates[aspect].format(question=answer.question, answer=answer.answer)
        return self.request_of(prompt, aspect)

    def again(self, request: Request) -> Request:
        """The same request once more, after a reply that could not be read."""
        return self.request_of(request.body["messages"][-1]["content"], request.aspect, request.attempt + 1)

    def request_of(self, prompt: str, aspect: str, attempt: int = 0) -> Request:
        """The request that sends a prompt as it stands."""
        config = self.config
        system = [{"role": "system", "content": config.system[aspect]}] if aspect in config.system else []
        messages = [*system, {"role": "user", "content": prompt}]
        body: dict[str, Any] = {"model": config.model, "messages": messages}
        if config.reasoning_effort is None:
            body["max_tokens"] = config.max_reply_tokens
        else:
            body["max_completion_tokens"] = config.max_reply_tokens
            body["reasoning_effort"] = config.reasoning_effort
        if config.temperature is not None:
            body["temperature"] = config.temperature
        if config.seed is not None:
            body["seed"] = config.seed + attempt
        if config.protocol == "logprob":
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        identity = {"protocol": config.protocol, "endpoint": config.endpoint, "body": body, "attempt": attempt}
        return Request(sha256_json(identity), aspect, attempt, body)

    def read(self, aspect: str, reply: Reply) -> Reading:
        """What a reply to a request for `aspect` amounts to."""
        if reply.finish == REFUSED:
            return unparsed("the judge refused to judge")
        if reply.finish not in ("stop", "length"):
            return unparsed(f"its finish_reason is {reply.finish!r}")
        if aspect in self.config.aspects:
            return self._read_own(aspect, reply)
        if self.config.protocol == "logprob":
            top = reply.top_logprobs or []
            if aspect == "alignment":
                return parsing.read_logprob_alignment(top)
            return parsing.read_logprob_score(top)
        read = parsing.read_alignment if aspect == "alignment" else parsing.read_score
        return read(reply.text, cut=reply.finish == "length")

    def _read_own(self, aspect: str, reply: Reply) -> Reading:
        rubric = self.config.aspects[aspect]
        if self.config.protocol == "logprob":
            value: float | str | None = rubric.value_of_tokens(reply.top_logprobs or [])
        else:
            value = rubric.value(reply.text, cut=reply.finish == "length")
        if value is None:
            return unparsed(parsing.why_not(reply.text))
        return Reading("scored", label=value) if isinstance(value, str) else Reading("scored", value)


def load_protocol(config: JudgeConfig) -> Protocol:
    """The protocol that `config` names, with its templates. Raises UserError when they cannot be read."""
    return Protocol(config, load_templates(Path(config.templates), config.templates_sha256))


def combine(alignment: Reading | None, coherence: Reading | None) -> tuple[Status, float | None, float | None]:
    """A row's status, alignment and coherence from its two readings; None stands for a request that failed.

    `error` and `unparsed` rows carry no scores; `code` and `refusal` rows carry coherence alone.
    """
    if alignment is None or coherence is None:
        return "error", None, None
    if "unparsed" in (alignment.status, coherence.status):
        return "unparsed", None, None
    return alignment.status, alignment.score, coherence.score
