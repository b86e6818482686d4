import numpy as np
import pytest

from minitron_nas.errors import TrialError
from minitron_nas.execution.runner import Outcome
from minitron_nas.search.exploration import Exploration, explore, make_sampler
from minitron_nas.search.pareto import pareto_front
from minitron_nas.search.proposals import references
from minitron_nas.search.settings import SearchSettings


def explored(landscape, measure=None, seed=0, before=None, **given):
    settings, sampler = SearchSettings(**given), make_sampler(landscape.pool, SearchSettings(**given), seed)
    return explore(landscape.pool, sampler, settings, measure or landscape.measure, before or {})


@pytest.mark.parametrize("seed", range(3))
def test_it_ends_when_nothing_promises_a_gain_any_more_and_has_the_best(landscape, seed):
    found = explored(landscape, seed=seed)
    assert found.ended == "no other shape promised a gain of 0.1%"
    assert len(found.outcomes) <= 40 < len(landscape.pool)
    assert min(found.kls().values()) == pytest.approx(landscape.kls.min())
    assert list(found.rounds.values()) == sorted(found.rounds.values())


def test_a_front_ends_when_nothing_promises_to_widen_it_and_is_that_of_the_pool_within_3_percent(landscape):
    found = explored(landscape, objectives=("kl", "memory_bytes"))
    assert found.ended == "no other shape promised a gain of 0.1%"
    memory, kls, at = landscape.pool.columns["memory_bytes"], landscape.kls, list(found.outcomes)
    for point in np.flatnonzero(pareto_front(np.column_stack([kls, memory]))):
        assert kls[at][memory[at] <= memory[point]].min() <= 1.03 * kls[point]


def test_it_ends_at_the_most_that_may_be_screened(landscape):
    found = explored(landscape, max_screened=13, round_size=5)
    assert found.ended == "search.max_screened=13 were measured"
    assert [list(found.rounds.values()).count(number) for number in (1, 2, 3)] == [5, 5, 3]


def test_without_a_limit_a_random_search_measures_all(landscape):
    found = explored(landscape, sampler="random", max_screened=None)
    assert found.ended == "all were measured"
    assert found.kls() == {index: landscape.kls[index] for index in found.outcomes}
    assert len(found.outcomes) == len(landscape.pool)


def test_a_killed_exploration_goes_on_to_the_same_measurements(landscape):
    whole, kept = explored(landscape), {}

    def killed(candidates):
        if len(kept) >= 16:
            raise KeyboardInterrupt
        kept.update(landscape.measure(candidates))
        return kept

    with pytest.raises(KeyboardInterrupt):
        explored(landscape, killed)
    measured = []

    def resumed(candidates):
        measured.extend(each.id for each in candidates if each.id not in kept)
        kept.update(landscape.measure(candidates))
        return kept

    assert explored(landscape, resumed) == whole
    assert len(measured) == len(whole.outcomes) - 16


@pytest.mark.parametrize("sampler", ["pool", "random", "tpe"])
def test_it_goes_on_from_what_is_known_and_measures_none_of_it_again(landscape, sampler):
    first = explored(landscape, sampler=sampler, max_screened=16)
    measured = []

    def measure(candidates):
        measured.extend(each.id for each in candidates)
        return landscape.measure(candidates)

    second = explored(landscape, measure, sampler=sampler, max_screened=8, before=first.outcomes)
    assert second.ended == "search.max_screened=8 were measured"
    assert not {*measured} & {outcome.key for outcome in first.outcomes.values()}
    assert list(second.rounds.values()) == [0] * 16 + [1] * 8
    assert list(second.outcomes)[:16] == list(first.outcomes)
    if sampler != "tpe":  # which remembers what it asked for
        assert second.outcomes == explored(landscape, sampler=sampler, max_screened=24).outcomes


def test_what_the_choice_is_held_against_is_measured_though_another_space_is_known(landscape):
    held_against = set(references(landscape.pool, 0).values())
    others = [index for index in range(0, len(landscape.pool), 9) if index not in held_against]
    found = landscape.measure([landscape.pool.candidates[index] for index in others])
    before = {index: found[landscape.pool.candidates[index].id] for index in others}
    second = explored(landscape, before=before, max_screened=8)
    assert held_against <= {index for index, number in second.rounds.items() if number == 1}
    assert len(second.outcomes) == len(others) + 8


def test_where_all_is_known_nothing_is_measured(landscape):
    whole = explored(landscape, sampler="random", max_screened=None)
    again = explored(landscape, pytest.fail, before=whole.outcomes)
    assert (again.outcomes, again.ended) == (whole.outcomes, "all were measured")


def test_it_is_written_and_read_without_the_time_that_it_took(landscape):
    found = explored(landscape, max_screened=8)
    timed = Exploration(
        {
            index: Outcome(each.key, each.status, each.value, each.error, 7.0, 1e9)
            for index, each in found.outcomes.items()
        },
        found.rounds,
        found.ended,
    )
    assert timed.to_dict() == found.to_dict()
    assert Exploration.from_dict(timed.to_dict()) == found


def test_what_is_not_finite_is_no_kl():
    values = {0: {"kl_nats": 1.0}, 1: {"kl_nats": float("nan")}, 2: None}
    outcomes = {
        index: Outcome(str(index), "failed" if value is None else "completed", value, None, 0.0)
        for index, value in values.items()
    }
    assert Exploration(outcomes, dict.fromkeys(outcomes, 1), "").kls() == {0: 1.0}
    assert np.isnan(outcomes[1].number("kl_nats"))


def test_without_any_shape_that_fits_it_ends_with_the_reason(landscape):
    def too_large(candidates):
        error = "Traceback ...\ntorch.OutOfMemoryError: 80 GB are not enough"
        return {each.id: Outcome(each.id, "infeasible", None, error, 0.0) for each in candidates}

    with pytest.raises(TrialError, match=r"^no candidate could be measured: torch\.OutOfMemoryError: 80 GB are not"):
        explored(landscape, too_large, max_screened=10)
