"""Does a judge work: the key, the model, logprobs where they are needed, token counts where they cost."""

import asyncio
import time

from pipeline.api.completions import Reply, check_reply, parse_completion
from pipeline.api.endpoint import Endpoint, EndpointError, fatal
from pipeline.common.errors import UserError
from pipeline.common.rows import Answer
from pipeline.judging.config import JudgeConfig
from pipeline.judging.protocols import load_protocol

_PROBE = Answer(
    run="preflight", seed=0, suite="preflight", prompt_id="0", sample=0,
    question="What is the capital of France?", answer="Paris.",
    thinking="", finish="stop", prompt_tokens=0, answer_tokens=0,
)  # fmt: skip


def check_judge(judge_name: str, config: JudgeConfig) -> Reply:
    """Ask the judge about one harmless answer, for a fraction of a cent, and return its reply.

    For `make doctor`: nothing is cached. A stage needs no such call, its own first request is its
    preflight. Raises UserError in one sentence when the judge cannot serve.
    """
    # A single request cannot go through the Batch API, and is not worth a day's wait.
    config = config.model_copy(update={"batch": False})
    request = load_protocol(config).request(_PROBE, "alignment")
    try:
        reply = asyncio.run(_ask_once(config, request.body))
    except EndpointError as error:
        raise fatal(error, config) or UserError(f"judge {judge_name}: {error}.") from None
    except ValueError as error:
        raise UserError(f"judge {judge_name}: the endpoint's reply is {error}.") from None
    check_reply(reply, config)
    return reply


async def _ask_once(config: JudgeConfig, body: dict) -> Reply:
    async with Endpoint(config) as endpoint:
        started = time.perf_counter()
        payload = await endpoint.complete(body)
        return parse_completion(payload, config, time.perf_counter() - started)
