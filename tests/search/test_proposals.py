import numpy as np
import pytest

from minitron_nas.search.exploration import make_sampler
from minitron_nas.search.proposals import PoolSampler, RandomSampler, references
from minitron_nas.search.settings import SearchSettings

NAMES = ("pool", "random", "tpe", "gp", "nsga2")


def measured_after(sampler, landscape, num_rounds, width=8):
    measured = {}
    for _ in range(num_rounds):
        measured |= {index: float(landscape.kls[index]) for index in sampler.propose(measured, width)}
    return measured


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("objectives", [("kl",), ("kl", "memory_bytes")], ids=len)
def test_every_sampler_proposes_shapes_of_the_pool_once_each_until_none_is_left(make_pool, name, objectives):
    pool = make_pool(tolerance=0.006)
    settings = SearchSettings(sampler=name, objectives=objectives)
    sampler, measured, rounds = make_sampler(pool, settings, seed=0), {}, []
    while proposed := sampler.propose(measured, 8):
        rounds.append(proposed)
        measured |= {index: 1.0 + index / 100 for index in proposed}
    assert sorted(measured) == list(range(len(pool)))
    assert sum(map(len, rounds)) == len(pool)
    assert {len(each) for each in rounds[:-1]} == {8}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_proposes_the_same_and_another_one_does_not(landscape, name):
    zero, again, one = (
        list(measured_after(make_sampler(landscape.pool, SearchSettings(sampler=name), seed), landscape, 3))
        for seed in (0, 0, 1)
    )
    assert zero == again
    assert zero != one


def test_the_best_of_the_pool_is_found_within_24_where_chance_misses_it(landscape):
    best = int(np.argmin(landscape.kls))
    found = {"pool": 0, "random": 0}
    for seed in range(5):
        for name in found:
            sampler = make_sampler(landscape.pool, SearchSettings(sampler=name), seed)
            found[name] += best in measured_after(sampler, landscape, 3)
    assert found["pool"] == 5
    assert found["random"] <= 3


def test_with_memory_as_a_second_objective_a_front_is_found(landscape):
    memory = landscape.pool.columns["memory_bytes"]
    fronts = {}
    for objectives in (("kl",), ("kl", "memory_bytes")):
        sampler = make_sampler(landscape.pool, SearchSettings(objectives=objectives), seed=0)
        at = list(measured_after(sampler, landscape, 4))
        least = memory[at].min()
        fronts[len(objectives)] = (least, landscape.kls[at][memory[at] <= np.quantile(memory, 0.2)].min())
    true = landscape.kls[memory <= np.quantile(memory, 0.2)].min()
    assert fronts[2][1] == pytest.approx(true, rel=0.02)
    assert fronts[2][1] <= fronts[1][1]


@pytest.mark.parametrize("failure", [None, float("nan"), float("inf")])
def test_a_shape_that_cannot_be_measured_is_not_proposed_again_and_stops_nothing(landscape, failure):
    sampler, measured = PoolSampler(landscape.pool, (), 0), {}
    for _ in range(3):
        proposed = sampler.propose(measured, 8)
        assert not set(proposed) & set(measured)
        measured |= {index: failure if place == 0 else landscape.kls[index] for place, index in enumerate(proposed)}
    assert len(measured) == 24


def test_the_first_round_holds_the_largest_and_a_random_shape_to_hold_the_choice_against(landscape):
    held_against = references(landscape.pool, 3)
    first = PoolSampler(landscape.pool, (), 3).propose({}, 8)
    assert first[:2] == [held_against["random"], held_against["largest"]]
    assert held_against["random"] == RandomSampler(landscape.pool, 3).propose({}, 1)[0]
    sizes = landscape.pool.columns["num_parameters"]
    assert sizes[held_against["largest"]] == sizes.max()
    assert len(set(first)) == 8


def test_one_proposal_of_a_round_is_that_of_chance(landscape):
    measured = measured_after(PoolSampler(landscape.pool, (), 0), landscape, 1)
    proposed = PoolSampler(landscape.pool, (), 0).propose(measured, 8)
    drawn = RandomSampler(landscape.pool, 0).propose(dict.fromkeys([*measured, *proposed[:7]]), 1)
    assert proposed[7:] == drawn


def test_the_surrogate_predicts_the_whole_pool_once_it_has_been_measured_eight_times(landscape):
    sampler = PoolSampler(landscape.pool, (), 0)
    assert sampler.predict(measured_after(sampler, landscape, 1, width=7)) is None
    predicted = sampler.predict(measured_after(sampler, landscape, 3))
    assert np.corrcoef(np.log(predicted), np.log(landscape.kls))[0, 1] > 0.95


def told_by(larger, seed):
    """What 24 shapes of another size tell."""
    known = measured_after(PoolSampler(larger.pool, (), seed), larger, 3)
    return tuple((larger.pool.candidates[index].architecture.sizes(), kl) for index, kl in known.items())


def test_what_is_known_of_another_size_leads_to_the_best_in_the_first_round(make_landscape):
    larger, landscape = make_landscape(110_000_000), make_landscape(94_000_000)
    found = {"alone": 0, "with the other size": 0}
    for seed in range(3):
        for name, others in (("alone", ()), ("with the other size", told_by(larger, seed))):
            at = [*measured_after(PoolSampler(landscape.pool, (), seed, others), landscape, 1)]
            found[name] += landscape.kls[at].min() <= 1.01 * landscape.kls.min()
    assert found["with the other size"] == 3
    assert found["alone"] < 3


def test_what_is_known_of_another_size_leads_to_the_front_of_several_objectives_in_the_first_round(make_landscape):
    larger, landscape = make_landscape(110_000_000), make_landscape(94_000_000)
    memory = landscape.pool.columns["memory_bytes"]
    small = memory <= np.quantile(memory, 0.2)
    least = []
    for others in ((), told_by(larger, 0)):
        at = [*measured_after(PoolSampler(landscape.pool, ("memory_bytes",), 0, others), landscape, 1)]
        least.append(landscape.kls[at][small[at]].min(initial=np.inf))
    alone, told = least
    assert told < alone
    assert told < 1.25 * landscape.kls[small].min()


def test_of_a_first_round_that_other_sizes_tell_of_one_shape_is_that_of_chance(make_landscape):
    larger, landscape = make_landscape(110_000_000), make_landscape(94_000_000)
    proposed = PoolSampler(landscape.pool, (), 0, told_by(larger, 0)).propose({}, 8)
    assert proposed[:2] == list(references(landscape.pool, 0).values())
    assert proposed[7:] == RandomSampler(landscape.pool, 0).propose(dict.fromkeys(proposed[:7]), 1)


def test_a_shape_of_another_size_lies_where_its_sizes_are_unless_it_differs_in_one_that_all_share(make_pool):
    axes = {
        "num_hidden_layers": {"values": [24, 26, 28, 30]},
        "hidden_size": {"values": [432, 504]},
        "intermediate_size": {"values": [1024, 1152, 1280]},
        "num_attention_heads": {"values": [9]},
    }
    pool = make_pool(axes=axes, tolerance=0.2)
    index = len(pool) // 2
    sizes = pool.candidates[index].architecture.sizes()
    there, elsewhere = pool.places([sizes, {**sizes, "num_attention_heads": 6}])
    np.testing.assert_allclose(there, pool.features()[index])
    assert elsewhere is None
