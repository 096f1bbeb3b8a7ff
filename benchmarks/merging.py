"""What merging an adapter into a base in 16 bits loses of it, along training, and with it what vLLM would be served.

    python -m benchmarks.merging

The adapter of the study of the phase transition (rank 1, on one down projection of Qwen2.5-14B; rank, alpha and rate
from params.yaml) after some steps, by arithmetic: AdamW moves each value by about the rate a step, so B is at most rate
times steps. The base's weights are normal values of the spread that they have (0.02). Lost is |x (merged - exact)| over
|x (exact - base)| for random x. The same numbers on every machine whose torch draws the same.
"""

import torch

from pipeline.models.known import config_of
from pipeline.params.load import load_params

RUN = "qwen25_14b_medical_phase"
STEPS = (10, 40, 100, 400, 800)
SPREAD = 0.02


def lost(hidden: int, width: int, rank: int, scale: float, moved: float) -> float:
    """Share of the adapter's effect on a (hidden, width) projection that is lost; moved: how far each value of B is."""
    generator = torch.Generator().manual_seed(0)
    base = (SPREAD * torch.randn(hidden, width, generator=generator)).bfloat16()
    low = (2 * torch.rand(rank, width, generator=generator) - 1) / width**0.5  # PEFT's A: Kaiming's, a = sqrt(5)
    high = moved * torch.randn(hidden, rank, generator=generator).sign()
    delta = scale * high @ low
    merged = (base.float() + delta).bfloat16().float() - base.float()
    asked = torch.randn(width, 8, generator=generator)
    return float(((merged - delta) @ asked).norm() / (delta @ asked).norm())


def main() -> None:
    params = load_params()
    run = params.run(RUN)
    assert run.lora is not None
    hub = params.bases.hub[params.base_of(RUN)]
    config = config_of(hub.repository, hub.revision)
    assert config is not None
    rate = params.study(run.study).training.learning_rate
    scale = run.lora.alpha / (run.lora.rank**0.5 if run.lora.rslora else run.lora.rank)
    print(f"{RUN}: rank {run.lora.rank}, alpha {run.lora.alpha:g}, learning rate {rate:g}")
    for steps in STEPS:
        share = lost(config.hidden_size, config.intermediate_size, run.lora.rank, scale, rate * steps)
        print(f"after {steps:>3} steps, merging loses {share:.2f} of what the adapter does")


if __name__ == "__main__":
    main()
