import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minitron_nas.errors import InvalidArchitectureError
from minitron_nas.importance.depth_modes import best_blocks, greedy_layers, layer_table, layers_alone, ranked_layers


def kept(table, count):
    return table[count - 1].nonzero().flatten().tolist()


class Costs:
    """A criterion that gives every set of removed layers a cost of its own, and counts what it was asked."""

    def __init__(self, num_layers, seed):
        sets = [frozenset(s) for n in range(num_layers + 1) for s in itertools.combinations(range(num_layers), n)]
        values = torch.rand(len(sets), generator=torch.Generator().manual_seed(seed)).tolist()
        self.of = dict(zip(sets, values, strict=True))
        self.asked = []

    def __call__(self, removed, runs):
        for run in runs:
            self.asked.append(removed | set(run))
            yield self.of[removed | set(run)]


def test_a_table_names_what_it_was_told_and_the_whole_model():
    table = layer_table({2: [0, 3]}, 4)
    assert table.int().tolist() == [[0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]


def test_a_ranking_is_a_table_of_its_prefixes_with_protected_layers_first_and_later_ones_leaving_before():
    table = ranked_layers([0.1, 0.9, 0.4, 0.4, 0.2], {4})
    assert [kept(table, count) for count in range(1, 6)] == [[4], [1, 4], [1, 2, 4], [1, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_layers_alone_leave_in_the_order_of_what_is_lost_without_each():
    costs = Costs(5, 0)
    table = layers_alone(costs, 5, {0})
    assert costs.asked == [{1}, {2}, {3}, {4}]
    by_cost = sorted((1, 2, 3, 4), key=lambda layer: costs.of[frozenset({layer})])
    for num_removed in range(5):
        assert kept(table, 5 - num_removed) == sorted(set(range(5)) - set(by_cost[:num_removed]))


def test_a_layer_whose_keys_others_read_is_not_measured_alone_and_stays():
    costs, kinds = Costs(5, 0), ("full", "full giving", "full sharing", "full sharing", "full sharing")
    table = layers_alone(costs, 5, {4}, kinds=kinds)
    assert costs.asked == [{0}, {2}, {3}]
    assert all(1 in kept(table, count) for count in range(2, 6))


@given(st.integers(3, 7), st.data())
def test_the_block_is_the_cheapest_of_all_that_are_free_of_protected_layers(num_layers, data):
    protected = data.draw(st.sets(st.sampled_from([0, num_layers - 1])))
    count = data.draw(st.integers(max(len(protected), 1), num_layers - 1))
    costs, length = Costs(num_layers, data.draw(st.integers(0, 99))), num_layers - count
    table = best_blocks(costs, num_layers, protected, [count])
    blocks = [frozenset(range(start, start + length)) for start in range(num_layers - length + 1)]
    best = min((block for block in blocks if not block & protected), key=costs.of.__getitem__)
    assert kept(table, count) == sorted(set(range(num_layers)) - best)
    assert kept(table, num_layers) == list(range(num_layers))
    assert int(table.any(dim=1).sum()) == 2


def test_blocks_of_equal_cost_are_taken_from_the_end():
    table = best_blocks(lambda removed, runs: iter([0.5] * len(runs)), 6, {0, 5}, [4])
    assert kept(table, 4) == [0, 1, 2, 5]


def test_blocks_that_protected_layers_leave_no_room_for_are_refused():
    message = (
        r"no 3 layers in a row are free of the protected layers \[0, 2, 5\] of 6; keep more layers, protect fewer, or "
        r"choose importance\.depth\.mode=layers or greedy"
    )
    with pytest.raises(InvalidArchitectureError, match=message):
        best_blocks(Costs(6, 0), 6, {0, 2, 5}, [4, 3])


@given(st.integers(2, 6), st.data())
def test_greedy_takes_the_cheapest_next_layer_every_time(num_layers, data):
    protected = data.draw(st.sets(st.integers(0, num_layers - 1), max_size=num_layers - 1))
    fewest = data.draw(st.integers(max(len(protected), 1), num_layers - 1))
    costs = Costs(num_layers, data.draw(st.integers(0, 99)))
    told = []
    table = greedy_layers(costs, num_layers, protected, fewest, lambda done, total: told.append((done, total)))
    removed = frozenset()
    for count in range(num_layers - 1, fewest - 1, -1):
        options = [removed | {layer} for layer in set(range(num_layers)) - protected - removed]
        removed = min(options, key=costs.of.__getitem__)
        assert kept(table, count) == sorted(set(range(num_layers)) - removed)
    assert not table[: fewest - 1].any()
    assert told == [(number, len(costs.asked)) for number in range(1, len(costs.asked) + 1)]


KINDS = ("delta", "delta", "full") * 2
"""Models of 5 layers lose a delta net, of 4 and 3 a layer more of it and of attention, and so on."""


def test_where_layers_are_of_kinds_each_is_ranked_among_its_own():
    table = ranked_layers([0.5, 0.4, 0.1, 0.9, 0.8, 0.2], {2}, KINDS)
    assert [kept(table, count) for count in range(1, 6)] == [[2], [2, 3], [2, 3, 4], [2, 3, 4, 5], [0, 2, 3, 4, 5]]


def test_only_runs_of_the_kinds_that_have_to_leave_are_looked_at():
    costs = Costs(6, 3)
    table = best_blocks(costs, 6, set(), [3], kinds=KINDS)
    assert set(costs.asked) == {frozenset({0, 1, 2}), frozenset({1, 2, 3}), frozenset({2, 3, 4}), frozenset({3, 4, 5})}
    assert len(kept(table, 3)) == 3
    with pytest.raises(InvalidArchitectureError, match="no 2 layers in a row are 2 delta, which a model of 4 layers"):
        best_blocks(Costs(6, 3), 6, {0, 4}, [4], kinds=KINDS)


def test_the_next_layer_to_leave_is_of_the_kind_whose_turn_it_is():
    costs, told = Costs(6, 5), []
    table = greedy_layers(costs, 6, {5}, 2, lambda done, total: told.append((done, total)), KINDS)
    kinds = [sorted(KINDS[layer] for layer in kept(table, count)) for count in (5, 4, 3, 2)]
    assert kinds == [
        ["delta", "delta", "delta", "full", "full"],
        ["delta", "delta", "full", "full"],
        ["delta", "delta", "full"],
        ["delta", "full"],
    ]
    assert told[-1] == (4 + 3 + 1 + 2,) * 2 == (len(costs.asked),) * 2
