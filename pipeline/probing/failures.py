"""A judge whose failures are refused as soon as they are too many, before answers are drawn that cost more."""

from pipeline.common.rows import Answer, Verdict
from pipeline.judging.run import refuse_failures
from pipeline.params.judges import Judge
from pipeline.params.parts import Thresholds


class Strict:
    """The judge, remembering what it was asked for one run.

    most: how many verdicts the run takes at most. Once so many failed that no later verdict could bring their share
    back under the study's thresholds, UserError says what failed; nothing that could still pass is refused.
    """

    def __init__(self, judge: Judge, thresholds: Thresholds, most: int, where: str) -> None:
        self._judge, self._thresholds, self._most, self._where = judge, thresholds, most, where
        self._verdicts: list[Verdict] = []

    def __call__(self, answers: list[Answer]) -> list[Verdict]:
        """One verdict an answer, in order. Raises UserError."""
        found = self._judge(answers)
        self._verdicts += found
        errors, unparsed = self._thresholds.errors, self._thresholds.unparsed
        refuse_failures(self._verdicts, errors, unparsed, self._where, of=self._most)
        return found
