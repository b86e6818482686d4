import pytest

from minitron_nas.search.choice import Choice
from minitron_nas.search.rungs import Standing

KLS = {"best": 0.5, "near": 0.52, "knee": 0.6, "small": 0.9, "poor": 1.0}
MEMORY = {"best": (10.0,), "near": (9.9,), "knee": (5.0,), "small": (4.0,), "poor": (6.0,)}
STANDINGS = [Standing(name, kl, ()) for name, kl in KLS.items()]


def test_one_member_is_the_lowest_kl():
    assert Choice().members(STANDINGS) == ["best"]
    assert Choice(costs=MEMORY).members(STANDINGS) == ["best"]


def test_the_knee_is_nearest_to_the_best_of_both():
    # As shares of the ranges 0.5 and 6: best (0, 1), near (0.04, 0.98), knee (0.2, 0.17), small (0.8, 0).
    assert Choice(first="knee", costs=MEMORY).members(STANDINGS) == ["knee"]


def test_more_members_are_points_of_the_front_far_from_each_other():
    assert Choice(2, costs=MEMORY).members(STANDINGS) == ["best", "small"]
    assert Choice(3, costs=MEMORY).members(STANDINGS) == ["best", "small", "knee"]
    assert Choice(4, costs=MEMORY).members(STANDINGS) == ["best", "small", "knee", "near"]


def test_where_the_front_is_too_short_the_lowest_kls_follow_and_no_more_than_there_are():
    assert Choice(5, costs=MEMORY).members(STANDINGS) == ["best", "small", "knee", "near", "poor"]
    assert Choice(2).members(STANDINGS) == ["best", "near"]
    assert Choice(9, costs=MEMORY).members(STANDINGS[:2]) == ["best", "near"]


@pytest.mark.parametrize(
    ("by_front", "order"),
    [(False, ["best", "near", "knee", "small", "poor"]), (True, ["best", "small", "knee", "near", "poor"])],
)
def test_trials_go_on_by_kl_or_by_fronts(by_front, order):
    costs = {**MEMORY, "near": (10.5,)}
    ranked = Choice(costs=costs, by_front=by_front).ranked(STANDINGS)
    assert [standing.candidate for standing in ranked] == order
