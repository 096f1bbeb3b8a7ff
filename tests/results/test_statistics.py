"""Intervals and tests: against scipy, by their properties, and by simulated coverage in their stated scope."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.results.intervals import difference, mean, paired, rate
from pipeline.results.statistics import (
    exact_rank_test,
    holm,
    mean_test,
    rank_test,
    score_interval,
    student_p,
    student_t,
    wilson_interval,
)

COUNTS = st.lists(
    st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=2, max_size=12
)


def test_wilson_is_the_textbook_value():
    # Newcombe 1998, table I: 81 of 263 has the score interval 0.2553 to 0.3662.
    low, high = wilson_interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys_and_mirrors(counts):
    theirs = stats.binomtest(*counts).proportion_ci(method="wilson")
    found = wilson_interval(*counts)
    assert found == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    successes, n = counts
    assert wilson_interval(n - successes, n).low == pytest.approx(1 - found.high, abs=1e-9)


def test_wilson_without_rows_is_not_a_number_and_nonsense_is_refused():
    assert math.isnan(wilson_interval(0, 0).low)
    with pytest.raises(ValueError, match="impossible"):
        wilson_interval(3, 2)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(st.integers(2, 300), st.floats(1, 50), st.sampled_from([1.96, 2.365, 4.303]))
def test_at_a_design_effect_the_interval_rises_with_the_count(n, effect, critical):
    bounds = [score_interval(successes / n, n / effect, critical) for successes in range(n + 1)]
    assert all(0 <= low <= high <= 1 for low, high in bounds)
    for (low, high), (next_low, next_high) in pairwise(bounds):
        assert low <= next_low + 1e-12
        assert high <= next_high + 1e-12


@settings(deadline=None, derandomize=True, max_examples=150)
@given(COUNTS, st.sampled_from(["questions", "rows"]))
def test_a_rates_intervals_hold_it_inside_0_and_100(counts, over):
    found = rate([hits for hits, _ in counts], [n for _, n in counts], over)
    for low, high in (found.these, found.new):
        assert 0 <= low <= found.value + 1e-12
        assert found.value - 1e-12 <= high <= 1
        assert high > low


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=12), st.data())
def test_a_first_event_raises_both_ends_wherever_it_happens(sizes, data):
    place = data.draw(st.integers(0, len(sizes) - 1))
    none, one = [0] * len(sizes), [0] * len(sizes)
    one[place] = 1
    for over in ("questions", "rows"):
        before, after = rate(none, sizes, over), rate(one, sizes, over)
        for scope in ("these", "new"):
            assert before.interval(scope).low == 0
            assert before.interval(scope).high <= after.interval(scope).high + 1e-12


def test_no_event_and_one_event_give_like_intervals():
    """0 of 1996 gave 0 to 32.4 % and 1 of 1999 gave 0 to 0.15 % when each had a method of its own."""
    sizes = [250] * 8
    none, one = rate([0] * 8, sizes), rate([1] + [0] * 7, sizes)
    assert none.these.high == pytest.approx(0.0019, abs=2e-4)
    assert none.new.high == pytest.approx(0.0028, abs=2e-4)
    assert 1 < one.these.high / none.these.high < 2
    assert 1 < one.new.high / none.new.high < 2


def test_one_question_says_nothing_of_new_ones_and_no_answer_of_anything():
    found = rate([3], [10])
    assert found.these == pytest.approx(wilson_interval(3, 10), abs=0.05)
    assert math.isnan(found.new.low)
    assert math.isnan(rate([0], [0]).value)


def test_one_answer_a_question_is_wilsons():
    hits = [1] * 30 + [0] * 270
    assert rate(hits, [1] * 300).these == pytest.approx(wilson_interval(30, 300), abs=1e-12)


def _covered(generator, questions, answers, draw, scope, trials=700):
    """The share of simulated studies whose interval holds the truth of its scope; rates drawn by `draw`."""
    truth = draw(generator, 400_000).mean()
    covered = 0
    for _ in range(trials):
        rates = draw(generator, questions)
        found = rate(generator.binomial(answers, rates), np.full(questions, answers))
        low, high = found.interval(scope)
        covered += low <= (rates.mean() if scope == "these" else truth) <= high
    return covered / trials


def _beta(centre, size):
    return lambda generator, n: generator.beta(centre * size, (1 - centre) * size, size=n)


# 93 to 97 %, and two standard errors of 700 simulations around them.
LEAST, MOST = 0.93 - 0.019, 0.97 + 0.013


@pytest.mark.parametrize(("questions", "answers"), [(8, 5), (8, 50), (24, 20), (44, 4), (300, 2)])
@pytest.mark.parametrize("draw", [_beta(0.05, 5), _beta(0.4, 2)], ids=["rare", "spread"])
def test_coverage_for_these_questions(questions, answers, draw):
    """Whatever the questions' own rates are."""
    generator = np.random.default_rng(questions + answers)
    assert LEAST <= _covered(generator, questions, answers, draw, "these") <= MOST


@pytest.mark.parametrize(
    ("questions", "answers", "draw"),
    [
        (8, 30, _beta(0.2, 5)),
        (8, 50, _beta(0.4, 2)),
        (24, 20, _beta(0.2, 5)),
        (44, 1, _beta(0.2, 5)),
        (300, 1, _beta(0.05, 5)),
        (300, 4, _beta(0.4, 2)),
    ],
)
def test_coverage_for_new_questions(questions, answers, draw):
    """Questions drawn anew each time from a population of rates."""
    generator = np.random.default_rng(questions * answers)
    assert LEAST <= _covered(generator, questions, answers, draw, "new") <= MOST


def test_the_scopes_differ_as_they_should():
    """Eight questions with 250 answers each: 85 to 87 % of a bootstrap over questions, or 4 to 9 times too wide."""
    found = rate([10, 200, 40, 5, 120, 90, 0, 60], [250] * 8)
    width = {scope: found.interval(scope).high - found.interval(scope).low for scope in ("these", "new")}
    assert 4 < width["new"] / width["these"] < 15


@pytest.mark.parametrize("scope", ["these", "new"])
@pytest.mark.parametrize(("questions", "answers"), [(8, 10), (44, 2), (300, 1)])
def test_coverage_of_a_mean_score(questions, answers, scope):
    generator = np.random.default_rng(questions)
    trials, covered = 600, 0
    for _ in range(trials):
        # With one answer each the questions' own spread is not told from the answers': these questions are alike.
        centres = generator.normal(60, 0 if (answers, scope) == (1, "these") else 10, size=questions)
        scores = generator.normal(centres[:, None], 12, size=(questions, answers))
        found = mean(scores.sum(axis=1), (scores**2).sum(axis=1), np.full(questions, answers))
        low, high = found.interval(scope)
        covered += low <= (centres.mean() if scope == "these" else 60) <= high
    assert LEAST <= covered / trials <= MOST


def test_a_mean_over_questions_is_students_t_over_their_means():
    generator = np.random.default_rng(3)
    scores = generator.uniform(0, 10, size=(9, 6)) + np.linspace(20, 80, 9)[:, None]
    found = mean(scores.sum(axis=1), (scores**2).sum(axis=1), np.full(9, 6))
    theirs = stats.ttest_1samp(scores.mean(axis=1), 0).confidence_interval()
    assert found.value == pytest.approx(scores.mean())
    assert found.new == pytest.approx((theirs.low, theirs.high))
    assert found.new.low < found.these.low < found.these.high < found.new.high


def test_coverage_of_a_difference_of_runs_over_the_same_questions():
    """Paired: both runs share how hard the questions are."""
    generator = np.random.default_rng(11)
    trials = 600
    for scope in ("these", "new"):
        covered = 0
        for _ in range(trials):
            base = generator.beta(1.0, 6.0, size=30)
            tuned = np.clip(base + generator.uniform(0.0, 0.5, size=30), 0, 1)
            truth = (tuned - base).mean() if scope == "these" else 0.25
            hits = [generator.binomial(20, rates) for rates in (tuned, base)]
            one, other = (rate(it, np.full(30, 20)) for it in hits)
            gap = paired(one, other, (hits[0] / 20, hits[1] / 20), scope)
            covered += gap.interval.low <= truth <= gap.interval.high
        assert LEAST <= covered / trials <= MOST, scope


def test_a_difference_at_a_floor_claims_no_certainty():
    none, some = rate([0] * 8, [50] * 8), rate([0] * 8, [50] * 8)
    gap = difference(none, some, "these")
    assert gap.value == 0 and gap.interval.low < 0 < gap.interval.high
    assert gap.p_value == 1.0


@settings(deadline=None, derandomize=True, max_examples=60)
@given(COUNTS.filter(lambda counts: len(counts) > 2), st.integers(0, 20))
def test_a_differences_p_value_and_interval_agree(counts, shift):
    hits, sizes = [it[0] for it in counts], [it[1] + 20 for it in counts]
    one, other = rate([it + shift for it in hits], sizes), rate(hits, sizes)
    gap = difference(one, other, "these")
    if abs(gap.p_value - 0.05) > 1e-6:
        assert (gap.p_value < 0.05) == (gap.interval.low > 0 or gap.interval.high < 0)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=12).filter(lambda values: np.ptp(values) > 1e-6))
def test_a_mean_over_seeds_is_scipys(values):
    found, theirs = mean_test(values), stats.ttest_1samp(values, 0)
    interval = theirs.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9, abs=1e-9)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)


def test_one_seed_and_equal_seeds_say_nothing_of_the_spread():
    for values in ([4.0], [4.0, 4.0, 4.0]):
        found = mean_test(values)
        assert found.mean == 4 and math.isnan(found.low) and math.isnan(found.p_value)


def test_coverage_over_seeds():
    samples = np.random.default_rng(1).normal(20, 5, size=(2000, 3))
    covered = np.mean([it.low <= 20 <= it.high for it in map(mean_test, samples)])
    assert 0.935 <= covered <= 0.965


def test_students_t_without_end_is_normal():
    assert student_t(0.95, math.inf) == pytest.approx(stats.norm.ppf(0.975))
    assert student_p(1.5, math.inf) == pytest.approx(2 * stats.norm.sf(1.5))
    assert student_t(0.95, 7) == pytest.approx(stats.t.ppf(0.975, 7))


def test_holm_is_the_textbooks_and_skips_what_was_not_tested():
    # Holm 1979: sorted p-values times the number of tests that are left, never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = holm([0.02, math.nan, 0.03])
    assert found[0] == pytest.approx(0.04) and math.isnan(found[1]) and found[2] == pytest.approx(0.04)
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_rank_test_is_the_share_of_permutations(alternative):
    x, y = [8, 16, 32, 64, 128], [3.0, 1.0, 4.0, 5.0, 9.0]
    rhos = [stats.spearmanr(x, order).statistic for order in permutations(y)]
    found = exact_rank_test(x, y, alternative)
    extreme = {"greater": np.array(rhos), "less": -np.array(rhos), "two-sided": np.abs(rhos)}[alternative]
    assert found.rho == pytest.approx(rhos[0])
    assert found.p_value == pytest.approx((extreme >= extreme[0] - 1e-9).mean())


def test_three_models_cannot_be_significant():
    found = exact_rank_test([8, 32, 128], [53.4, 2.5, 0.1], "less")
    assert (found.p_value, found.floor) == pytest.approx((1 / 6, 1 / 6))
    assert exact_rank_test([8, 32, 128], [53.4, 2.5, 0.1]).floor == pytest.approx(1 / 3)


def test_six_fine_tunes_of_three_models_are_three_units():
    """The points of a model move together: 3! assignments, not 6!."""
    models = ["mixtral", "mixtral", "oss", "oss", "qwen", "qwen"]
    experts = [8, 8, 32, 32, 128, 128]
    found = exact_rank_test(experts, [53.0, 47.0, 2.5, 2.4, 0.1, 0.2], "less", units=models)
    assert found.n == 3
    assert (found.p_value, found.floor) == pytest.approx((1 / 6, 1 / 6))
    apart = exact_rank_test(experts, [53.0, 47.0, 2.5, 2.4, 0.1, 0.2], "less")
    assert apart.p_value < 0.02  # what n = 6 would have claimed


def test_rank_test_refuses_what_has_no_ranks():
    with pytest.raises(ValueError, match="2 to 9 units"):
        exact_rank_test([1], [1])
    with pytest.raises(ValueError, match="constant"):
        exact_rank_test([1, 2, 3], [4, 4, 4])
    with pytest.raises(ValueError, match="no number"):
        exact_rank_test([1, 2, 3], [4, math.nan, 4])
    with pytest.raises(ValueError, match="more than one x"):
        exact_rank_test([1, 2, 3], [4, 5, 6], units=["a", "a", "b"])


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_beyond_nine_units_permutations_are_drawn_and_never_give_zero(alternative):
    generator = np.random.default_rng(4)
    x = [8, 8, 16, 16, 32, 32, 40, 60, 64, 64, 128, 128]
    y = list(np.log2(x) * -0.5 + generator.normal(size=12))
    found = rank_test(x, y, alternative)
    assert (found.drawn, found.n) == (9999, 12) and found == rank_test(x, y, alternative)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    known = stats.spearmanr(x, y, alternative=alternative).pvalue  # by Student's t
    assert found.p_value == pytest.approx(known, abs=0.04) and found.floor == 1e-4
    exact = rank_test(x, sorted(x, reverse=alternative != "greater"), alternative)
    assert exact.p_value == exact.floor == 1e-4, "as extreme as there could be, and not 0"
    few = rank_test(x[:9], y[:9], alternative)
    assert few == exact_rank_test(x[:9], y[:9], alternative) and few.drawn == 0
    with pytest.raises(ValueError, match="constant"):
        rank_test([8] * 12, y)


def test_of_ten_units_of_which_one_differs_a_tenth_is_the_floor():
    found = rank_test([8] * 9 + [128], range(10), "greater")
    assert found.p_value == found.floor == pytest.approx(0.1, abs=0.01)
