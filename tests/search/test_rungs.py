"""Who goes on from a rung: the quota, and those that a paired test over sequences cannot tell from the best."""

from math import sqrt

import numpy as np
import pytest
from scipy.stats import ttest_rel

from minitron_nas.search.rungs import Standing, going_on, is_decided, most_trained, p_worse, quotas


def standing(name, sums):
    return Standing(name, float(np.mean(sums)), tuple(sums))


def field(noise, **means):
    """Trials whose sequences differ by `noise`, which changes its sign from sequence to sequence."""
    signs = np.resize([1.0, -1.0], 10)
    return [
        standing(name, mean + place * noise * signs) for place, (name, mean) in enumerate(means.items())
    ]  # so that two of them differ by (difference of means) +- noise * (difference of places)


def test_the_p_value_is_that_of_the_paired_t_test():
    generator = np.random.default_rng(0)
    first, second = generator.normal(1.0, 0.3, 12), generator.normal(0.9, 0.3, 12)
    for one, other in ((first, second), (second, first)):
        expected = ttest_rel(one, other, alternative="greater").pvalue
        assert p_worse(standing("a", one), standing("b", other)) == pytest.approx(expected, rel=1e-12)


def test_two_sequences_give_a_p_value_that_a_hand_can_compute():
    # d = 1, 3: mean 2, sd sqrt 2, t = 2; with one degree of freedom p = 1/2 - atan(2)/pi.
    p = p_worse(standing("a", [2.0, 5.0]), standing("b", [1.0, 2.0]))
    assert p == pytest.approx(0.5 - np.arctan(2.0) / np.pi)
    assert sqrt(2.0) == pytest.approx(np.std([1.0, 3.0], ddof=1))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([1.0], [0.5], 1.0), ([1.0, 2.0], [1.0, 2.0], 1.0), ([2.0, 3.0], [1.0, 2.0], 0.0), ([1.0, 2.0], [2.0, 3.0], 1.0)],
    ids=["one sequence", "equal", "always worse by the same", "always better by the same"],
)
def test_without_noise_or_without_anything_to_measure_it_by(one, other, expected):
    assert p_worse(standing("a", one), standing("b", other)) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((8, (1, 2, 4), 2), [8, 4, 2, 1]),
        ((5, (1, 2, 4), 3), [5, 2, 1]),
        ((3, (1,), 2), [3, 1]),
        ((1, (1, 2), 2), [1, 1]),
        ((16, (0, 1, 2, 4), 2), [16, 4, 2, 1]),
        ((24, (0, 1, 2, 4), 2), [24, 6, 3, 2, 1]),
        ((8, (0, 1, 2, 4), 9), [8, 2, 1]),
        ((2, (0, 1, 2), 2), [2, 2, 1]),
        ((1, (0, 1, 2), 2), [1, 1, 1]),
        ((4, (), 2), [4, 1]),
    ],
)
def test_each_rung_takes_what_the_reduction_leaves_rounded_up(arguments, expected):
    assert quotas(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((16, (0, 1, 2), 2), 6),
        ((12, (0, 1, 2), 3), 3),
        ((5, (0, 1, 2), 2), 3),
        ((2, (0, 1, 2), 2), 2),
        ((12, (1, 2), 2), 12),
        ((3, (), 2), 3),
    ],
)
def test_with_rung_0_a_quarter_are_trained_and_those_that_tie(arguments, expected):
    assert most_trained(*arguments) == expected


def test_as_many_go_on_as_there_shall_be_members():
    assert quotas(16, (0, 1, 2, 4), 2, num_members=3) == [16, 4, 3, 3, 3]
    assert quotas(16, (0, 1, 2, 4), 2, num_members=8) == [16, 8, 8, 8, 8]
    assert quotas(2, (1, 2), 2, num_members=3) == [2, 2, 2]


def test_as_many_are_trained_as_there_shall_be_members_and_those_that_tie():
    assert [most_trained(16, (0, 1, 2), 2, members) for members in (1, 4, 6, 8, 16)] == [6, 6, 9, 12, 16]


def test_what_is_significantly_worse_than_the_best_is_cut():
    assert going_on(field(0.01, a=1.0, b=1.1, c=1.2, d=1.3), quota=2) == ["a", "b"]


def test_what_is_not_goes_on_up_to_one_and_a_half_times_the_quota():
    tied = field(0.5, a=1.0, b=1.01, c=1.02, d=1.03, e=1.04, f=1.05, g=1.06, h=1.07)
    assert going_on(tied, quota=4) == ["a", "b", "c", "d", "e", "f"]
    assert going_on(tied[:5], quota=4) == ["a", "b", "c", "d", "e"]


def test_a_tie_goes_on_past_one_that_is_worse():
    # c is worse than a by the same over every sequence; d by more, but not over all of them.
    noisy = standing("d", 1.3 + np.resize([5.0, -5.0], 10))
    assert going_on([*field(0.0, a=1.0, b=1.0, c=1.2), noisy], quota=2) == ["a", "b", "d"]


def test_the_more_are_held_against_the_best_the_stronger_the_proof_that_one_is_worse():
    # d_i = 1 +- 1.3 over ten sequences: t = 2.31, p = 0.023, below 0.05 of one trial and above 0.05/3 of each of three.
    alone = field(1.3, a=1.0, b=2.0)
    assert p_worse(alone[1], alone[0]) == pytest.approx(0.0232, abs=2e-4)
    assert going_on(alone, quota=1) == ["a"]
    worse = [Standing(name, 9.0, (9.0,) * 10) for name in "cd"]
    assert going_on([*alone, *worse], quota=1) == ["a", "b"]


def test_a_tournament_is_decided_when_three_keep_their_order_and_their_distance():
    now = field(0.01, a=1.0, b=1.1, c=1.2)
    before = field(0.01, a=2.0, b=2.2, c=2.4, d=2.6)
    assert is_decided(before, now)
    assert not is_decided([], now)
    assert not is_decided(field(0.01, b=2.0, a=2.2, c=2.4), now)
    assert not is_decided(before[:2], now[:2])


def test_a_gap_within_the_noise_of_either_rung_decides_nothing():
    clear, blurred = field(0.01, a=1.0, b=1.1, c=1.2), field(2.0, a=1.0, b=1.1, c=1.2)
    assert not is_decided(clear, blurred)
    assert not is_decided(blurred, clear)
