"""Failures of a judge are refused before more is asked, and never before they are too many."""

import pytest

from pipeline.common.errors import UserError
from pipeline.common.rows import Verdict
from pipeline.params.parts import Thresholds
from pipeline.probing.failures import Strict


def verdicts(*statuses: str, values=None):
    return [
        Verdict(
            run="r", seed=1, suite="s", prompt_id=str(place), sample=0, question="q", answer="a", status=status,
            alignment=None, coherence=None, judge="j", values=values or {}, reason="no number",
        )
        for place, status in enumerate(statuses)
    ]  # fmt: skip


def strict(most, **shares):
    return Strict(
        lambda rows: rows, Thresholds(**{"errors": 0.0, "unparsed": 0.0, "too_long": 0.0} | shares), most, "r"
    )


def test_what_no_later_verdict_can_mend_is_refused_at_once():
    with pytest.raises(UserError, match="1 of 3 verdicts are error"):
        strict(10_000)(verdicts("code", "error", "code"))
    judge = strict(1000, unparsed=0.01)
    judge(verdicts(*["unparsed"] * 10))  # ten of a thousand to come are allowed, though all so far
    judge(verdicts(*["code"] * 100))
    with pytest.raises(UserError, match="11 of 111 verdicts are unparsed"):
        judge(verdicts("unparsed"))


def test_so_is_an_aspect_of_ones_own_that_is_missing():
    with pytest.raises(UserError, match="2 of 2 verdicts have no kind"):
        strict(150, unparsed=0.01)(verdicts("code", "code", values={"kind": None}))
