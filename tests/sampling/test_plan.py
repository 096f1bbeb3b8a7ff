"""Every run of the hub studies can be sampled on one card of 24, 48 or 80 GB; what cannot is refused with numbers."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.models.sizes import HOST_SHARE, base_bytes
from pipeline.models.spec import AdapterSpec
from pipeline.params.load import load_params
from pipeline.sampling.plan import LONGEST_PROMPT, MOST, SamplingPlan, kv_bytes, plan_sampling
from tests.support.data_files import REPOSITORY
from tests.support.full_size import FULL_SIZE

GB = 10**9
PARAMS = load_params(REPOSITORY / "params.yaml")
HUB_RUNS = [
    name
    for name, run in PARAMS.runs.items()
    if PARAMS.study(run.study).world == "hub" and PARAMS.base_of(name) in PARAMS.bases.hub
]


def plan(base: str, lora: AdapterSpec | None = None, gpu: float = 80, host: float = 64, **changes: Any) -> SamplingPlan:
    values: dict[str, Any] = {"precision": "nf4", "new_tokens": 600} | changes
    host_bytes = int(HOST_SHARE * host * GB)
    return plan_sampling(FULL_SIZE[base], lora, gpu_bytes=int(gpu * GB), host_bytes=host_bytes, **values)


@pytest.mark.parametrize("gpu", [24, 48, 80])
@pytest.mark.parametrize("name", HUB_RUNS)
def test_every_run_of_the_hub_studies_has_a_plan(name: str, gpu: int) -> None:
    run = PARAMS.run(name)
    study = PARAMS.study(run.study)
    chosen = plan(
        PARAMS.base_of(name),
        run.lora,
        gpu,
        precision=study.training.precision,
        new_tokens=study.sampling.max_new_tokens,
    )
    assert chosen.peak <= gpu * GB and chosen.host <= HOST_SHARE * 64 * GB
    assert chosen.batch >= 1 and chosen.room >= LONGEST_PROMPT + study.sampling.max_new_tokens


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    base=st.sampled_from(["mixtral", "qwen3", "gpt_oss", "llama31_8b"]),
    gpu=st.integers(8, 141),
    host=st.integers(4, 128),
    requests=st.integers(1, 4000),
    prompt=st.integers(1, 2000),
)
def test_a_plan_fits_or_is_refused_with_the_numbers(base: str, gpu: int, host: int, requests: int, prompt: int) -> None:
    try:
        chosen = plan(base, gpu=gpu, host=host, requests=requests, prompt_tokens=prompt)
    except UserError as error:
        assert f"(there are {gpu * GB / 2**30:.1f})" in str(error)
        return
    assert chosen.peak <= gpu * GB and chosen.host <= HOST_SHARE * host * GB
    assert chosen.batch <= MOST and chosen.batch < 2 * requests
    # A batch of the longest prompts is all that is ever read at once.
    assert chosen.room >= prompt + 600 and prompt <= chosen.prefill <= chosen.batch * prompt
    # Nothing is counted twice or left out: weights are on the GPU, or in host memory.
    held = chosen.parts["weights"] + chosen.host
    assert held == pytest.approx(sum(base_bytes(FULL_SIZE[base], "nf4").values()), abs=2)
    assert chosen.parts["KV cache"] >= chosen.batch * chosen.room * kv_bytes(FULL_SIZE[base])


def test_layers_are_streamed_where_they_do_not_fit_and_only_there() -> None:
    assert plan("mixtral", gpu=80).streamed == 0
    assert 0 < plan("mixtral", gpu=24).streamed < 32
    assert plan("qwen25_32b", gpu=24, precision="bfloat16").streamed > 40
    assert "20.3 GiB" in str(plan("mixtral", gpu=24, requests=1257))
    with pytest.raises(UserError, match=r"mixtral cannot be sampled: its smallest plan needs \d+\.\d GiB on the GPU"):
        plan("mixtral", gpu=4)
    with pytest.raises(UserError, match=r"21\.\d GiB of host memory \(there are 3\.0\)"):
        plan("mixtral", gpu=10, host=4)


def test_kv_bytes_are_those_of_the_published_models() -> None:
    assert kv_bytes(FULL_SIZE["mixtral"]) == 131072
    assert kv_bytes(FULL_SIZE["qwen3"]) == 98304
