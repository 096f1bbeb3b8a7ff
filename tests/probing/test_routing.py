"""Divergences, halves and ratios, against what is known of them."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.probing.directions import cosine, mean_differences, random_like, shuffled_contrasts
from pipeline.probing.reading import Reading
from pipeline.probing.routing import jensen_shannon, routing_shift
from pipeline.results.halves import halves
from pipeline.results.ratios import fieller, spearman

COUNTS = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any)


@given(COUNTS, COUNTS)
def test_the_divergence_is_symmetric_and_between_0_and_1_bit(one, other) -> None:
    found = float(jensen_shannon(np.array(one), np.array(other)))
    assert 0 <= found <= 1 + 1e-12
    assert math.isclose(found, float(jensen_shannon(np.array(other), np.array(one))), abs_tol=1e-12)
    assert float(jensen_shannon(np.array(one), np.array(one))) < 1e-12


def test_disjoint_choices_are_one_bit_apart() -> None:
    assert float(jensen_shannon(np.array([5, 0]), np.array([0, 3]))) == 1.0


def reading(choices) -> Reading:
    """Texts of eight tokens and one active expert, on one layer."""
    return Reading(
        streams=torch.zeros(len(choices), 1, 2),
        chosen=tuple(torch.tensor(it, dtype=torch.int16).view(1, 8, 1) for it in choices),
    )


def test_a_shift_stands_out_from_its_baseline_and_noise_does_not() -> None:
    random = np.random.default_rng(1)
    one, same = (random.integers(0, 4, (20, 8)) for _ in range(2))
    moved = np.where(random.random((20, 8)) < 0.5, 3, one)
    (noise,), (shift,) = (list(routing_shift(reading(one), reading(it), 4, (0,), 200, 1)) for it in (same, moved))
    assert shift["divergence_bits"] > shift["chance_high_bits"] and shift["p_value"] < 0.01
    assert noise["p_value"] > 0.05
    assert shift["overlap"] > noise["overlap"] and shift["tokens"] == 160
    assert math.isclose(sum(shift["tuned_load"]), 1, abs_tol=1e-5)


def test_random_directions_have_the_length_of_the_one_they_stand_beside() -> None:
    direction = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    drawn = random_like(direction, 1)
    torch.testing.assert_close(drawn.norm(dim=-1), direction.norm(dim=-1))
    assert torch.equal(drawn, random_like(direction, 1))
    assert cosine(direction, 2 * direction)[0] == 1 and cosine(direction, direction)[1].isnan()


def test_shuffled_labels_leave_what_tells_suites_apart_and_no_more() -> None:
    """Two suites far apart; in each, misaligned answers lie further along the second coordinate."""
    generator, suites = torch.Generator().manual_seed(1), ["one"] * 12 + ["two"] * 12
    labels = [*[True] * 9, *[False] * 3, *[True] * 3, *[False] * 8, None]
    streams = 0.1 * torch.randn(24, 2, 2, generator=generator)
    streams[12:, :, 0] += 10
    streams[[place for place, label in enumerate(labels) if label], 1, 1] += 1
    tuned = Reading(streams=streams, chosen=())
    found = mean_differences(tuned, tuned, labels)["contrast"]
    kept, lengths = shuffled_contrasts(tuned, labels, suites, count=200, keep=3, seed=1)
    assert kept.shape == (3, 2, 2) and lengths.shape == (200, 2)
    torch.testing.assert_close(kept.norm(dim=-1), lengths[:3])
    # What tells suites apart is in each of them, as it is in the contrast; what tells labels apart in few.
    torch.testing.assert_close(kept[:, :, 0], found[:, 0].expand(3, 2), atol=0.2, rtol=0)
    assert (kept[:, 1, 1].abs() < 0.8 * found[1, 1]).all() and found[1, 1] > 0.9
    assert (lengths[:, 1] >= found[1].norm()).float().mean() < 0.05 < (lengths[:, 0] >= found[0].norm()).float().mean()


@given(st.integers(1, 40))
def test_halves_are_even_and_do_not_depend_on_order(count) -> None:
    asked = [("a", str(number)) for number in range(count)] + [("b", "0")]
    found = halves(asked)
    assert found == halves(reversed(asked)) and found.keys() == set(asked)
    assert [half for key, half in found.items() if key[0] == "a"].count("report") == count // 2


def test_fiellers_interval_covers_and_knows_where_there_is_none() -> None:
    """Ratio 0.3 of means 3 and 10, five units: covered in 95 % of 2,000 draws, within four standard errors."""
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        below = random.normal(10, 2, 5)
        low, high = fieller(0.3 * below + random.normal(0, 1, 5), below)
        covered += low <= 0.3 <= high
    assert abs(covered / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)
    assert all(map(math.isnan, fieller([1.0, 2.0, 1.0], [1.0, -1.0, 0.5])))


def test_rank_correlation_of_equal_orders_is_1_and_of_a_constant_none() -> None:
    assert spearman([1, 2, 3, 4, 5, 6], [2, 3, 5, 7, 11, 13])[0] == 1.0
    assert spearman([1, 2, 3, 4, 5, 6], [2, 3, 5, 7, 11, 13])[1] < 0.01
    assert all(map(math.isnan, spearman([1, 1, 1], [1, 2, 3])))
