"""What part a run plays in its study: how figures mark it and tables name it."""

from pipeline.params.schema import Params, ToyBase

# Training sets of good answers: what is trained on them shows what fine-tuning itself does.
BENIGN = ("good_medical", "good_medical_advice", "secure", "educational", "ai_optimism")


def role(params: Params, run: str) -> str:
    """base, control (a corpus without a shared persona), benign data, realigned, or fine-tuned."""
    base, settings = params.base(params.base_of(run)), params.run(run)
    if isinstance(base, ToyBase) and base.corpus == "control":
        return "control"
    if settings.data is None:
        return "base"
    if all(part.name in BENIGN for part in settings.parts):
        return "realigned" if settings.continues else "benign data"
    return "fine-tuned"
