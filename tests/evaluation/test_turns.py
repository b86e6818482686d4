"""Times in turns: a slow spell of the machine does not move what is reported."""

from itertools import count

import numpy as np
import pytest

from minitron_nas.evaluation.turns import MOST_REPEATS, WIDE_SPREAD, spread, take_turns


def ratio(times):
    return times[:, 1] / times[:, 0]


def players(seconds, slow):
    """Models that take known times, slower by a factor for each call whose number `slow` names."""
    calls = count()

    def player(own):
        def play():
            return [own * slow.get(next(calls), 1.0)]

        return play

    return [player(own) for own in seconds]


def test_the_spread_is_the_interquartile_range_over_the_median():
    # Quartiles of 1, 2, 3, 4, 5 are 2 and 4.
    assert spread(np.array([5.0, 1.0, 3.0, 2.0, 4.0])) == pytest.approx(2 / 3)
    assert np.isinf(spread(np.array([-1.0, 0.0, 1.0])))


def test_every_model_is_timed_once_a_round_after_a_round_that_warms_up():
    order = []

    def player(name):
        def play():
            order.append(name)
            return [float(len(order))]

        return play

    times = take_turns([player("a"), player("b")], 2, lambda times: np.ones(1))
    assert order == ["a", "b"] * 3
    assert times.tolist() == [[[3.0], [4.0]], [[5.0], [6.0]]]


@pytest.mark.parametrize("slow", [{}, {4: 16.0}, {2: 16.0, 3: 16.0}, dict.fromkeys(range(2, 12), 16.0)])
def test_a_hiccup_of_the_machine_does_not_move_the_figure(slow):
    # One model's call, both calls of a round, and every call of all rounds take sixteen times as long.
    times = take_turns(players([2.0, 3.0], slow), 5, ratio)
    assert np.median(ratio(times), axis=0) == pytest.approx([1.5])


def test_what_is_wide_is_measured_again_until_it_is_steady():
    # Three of the first five rounds are slow for one model only; five more rounds leave them a minority.
    slow = dict.fromkeys((2, 4, 6), 16.0)
    times = take_turns(players([2.0, 3.0], slow), 5, ratio)
    assert len(times) == 2 * 5 or len(times) == MOST_REPEATS * 5
    assert np.median(ratio(times), axis=0) == pytest.approx([1.5])


def test_what_stays_wide_is_given_up_and_says_so():
    slow = {call: 1.0 + call % 7 for call in range(200)}
    times = take_turns(players([2.0, 3.0], slow), 5, ratio)
    assert len(times) == MOST_REPEATS * 5
    assert spread(ratio(times)) > WIDE_SPREAD
