from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_nas.search.pareto import pareto_front, spread_front


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(1, 1)], [True]),
        ([(1, 2), (2, 1)], [True, True]),
        ([(1, 1), (2, 2)], [True, False]),
        ([(1, 1), (1, 2)], [True, False]),
        ([(2, 1), (1, 1)], [False, True]),
        ([(1, 1), (1, 1), (2, 0)], [True, True, True]),
        ([(3, 0.2), (2, 0.3), (1, 0.9), (2, 0.4), (3, 0.1)], [False, True, True, False, True]),
        ([(1,), (0,), (0,)], [False, True, True]),
        ([(1, 2, 3), (1, 2, 4), (0, 9, 9)], [True, False, True]),
        ([(1, inf), (2, 5)], [True, True]),
    ],
)
def test_the_front_is_as_by_hand(points, front):
    assert pareto_front(points) == front


def test_nan_is_never_on_the_front_and_beats_nobody():
    assert pareto_front([(1, nan), (2, 5), (3, 6), (nan, nan)]) == [False, True, False, False]


def lists_of(num_objectives):
    return st.lists(st.tuples(*[st.integers(0, 4)] * num_objectives), max_size=12)


@settings(max_examples=120)
@given(st.one_of(lists_of(2), lists_of(3), lists_of(4)))
def test_a_point_is_on_the_front_unless_another_one_beats_it(points):
    def beats(one, other):
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    expected = [sum(beats(other, point) for other in points) == 0 for point in points]
    assert pareto_front(points) == expected
    assert not points or any(expected)


@settings(max_examples=40)
@given(st.permutations([(5, 1), (4, 2), (4, 3), (3, 3), (1, 9), (1, 9), (2, nan)]))
def test_the_front_does_not_depend_on_the_order(points):
    on_front = {point for point, on in zip(points, pareto_front(points), strict=True) if on}
    assert on_front == {(5, 1), (4, 2), (3, 3), (1, 9)}


def test_the_front_is_spread_from_its_first_point_each_the_farthest_from_those_before():
    points = [(0.0, 10.0), (0.1, 9.0), (0.5, 5.0), (1.0, 0.0), (1.0, 5.0)]
    assert spread_front(points) == [0, 3, 2, 1]
    assert spread_front(points[::-1]) == [1, 4, 2, 3]
    assert spread_front(points, knee=True)[0] == 2


def test_of_one_point_or_one_objective_the_front_is_what_is_least():
    assert spread_front([(2.0, 1.0)]) == [0]
    assert spread_front([(2.0,), (1.0,), (3.0,)]) == [1]
