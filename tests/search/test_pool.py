import re

import numpy as np
import pytest

from minitron_nas.architecture.costs import (
    count_embedding_parameters,
    count_parameters,
    forward_flops_per_token,
    kv_cache_bytes_per_token,
)
from minitron_nas.errors import SpaceError
from minitron_nas.families.catalog import layout_of
from minitron_nas.search.costing import Costing, Deployment
from minitron_nas.search.objectives import Constraint
from minitron_nas.search.pool import Pool
from minitron_nas.space.axes import load_space
from minitron_nas.space.enumerate import enumerate_candidates
from minitron_nas.space.size import Size


class ByLayers:
    """A millisecond a layer, two for a prompt."""

    def predict(self, columns):
        layers = columns["num_hidden_layers"] * 1e-3
        return {"prefill_seconds": 2 * layers, "decode_seconds": layers}


def test_columns_are_what_each_shape_costs_by_itself(make_pool):
    pool = make_pool()
    layout = layout_of("llama")
    assert len(pool) > 50
    for index in range(0, len(pool), 7):
        shape = pool.candidates[index].architecture
        cost = {name: int(values[index]) for name, values in pool.columns.items()}
        assert {name: cost[name] for name in shape.sizes()} == shape.sizes()
        assert cost["num_parameters"] == cost["num_active_parameters"] == count_parameters(shape, layout)
        assert cost["num_embedding_parameters"] == count_embedding_parameters(shape, layout)
        assert cost["forward_flops_per_token"] == forward_flops_per_token(shape, layout, 128)
        assert cost["kv_cache_bytes_per_token"] == kv_cache_bytes_per_token(shape, layout)
        assert cost["memory_bytes"] == 2 * cost["num_parameters"] + 4096 * cost["kv_cache_bytes_per_token"]


def test_a_constraint_leaves_out_what_it_forbids_and_says_how_much(make_pool):
    limit = 290_000_000
    text = f"memory_bytes <= {limit} at batch 8, context 1k"
    free, bound = make_pool(), make_pool(constraints=[text])
    allowed = free.columns["num_parameters"] * 2 + 8000 * free.columns["kv_cache_bytes_per_token"] <= limit
    assert 0 < allowed.sum() < len(free)
    assert [each.id for each in bound.candidates] == [
        candidate.id for candidate, kept in zip(free.candidates, allowed, strict=True) if kept
    ]
    assert bound.excluded == {text: len(free) - len(bound)}
    assert bound.columns["hidden_size"].tolist() == free.columns["hidden_size"][allowed].tolist()


def test_a_constraint_on_memory_counts_what_layers_keep_of_every_sequence():
    space, layout = load_space("nemotron-nano-9b-v2"), layout_of("nemotron_h")
    source = space.source_architecture()
    found = enumerate_candidates(space, Size.parse("7B"), source, layout)
    costing = Costing(source, layout, 128, Deployment(1, 4096))
    free = Pool.of(found, costing).columns
    caches = 4000 * free["kv_cache_bytes_per_token"] + free["state_bytes_per_sequence"]
    taken = 2 * free["num_parameters"] + 100 * caches
    limit = int(np.median(taken))
    bound = Pool.of(found, costing, [Constraint.parse(f"memory_bytes <= {limit} at batch 100, context 4k")])
    assert len(bound) == (taken <= limit).sum()


def test_a_constraint_that_nothing_keeps_to_is_refused_with_the_nearest(make_pool):
    fewest = int(make_pool().columns["kv_cache_bytes_per_token"].min())
    with pytest.raises(SpaceError, match=re.escape(f"nearest has kv_cache_bytes_per_token={fewest:,.4g}; loosen")):
        make_pool(constraints=["kv_cache_bytes_per_token <= 1kB"])


def test_speedups_are_relative_to_the_source(make_pool):
    pool = make_pool(latency=ByLayers(), constraints=["decode_speedup >= 1.25x"])
    layers = pool.columns["num_hidden_layers"]
    assert layers.max() == 24
    assert pool.columns["decode_speedup"] == pytest.approx(30 / layers)
    assert pool.columns["prefill_seconds"] == pytest.approx(layers * 2e-3)


def test_a_constraint_on_time_needs_a_latency_model(make_pool):
    with pytest.raises(SpaceError, match=r"decode_speedup >= 2: that needs a latency model"):
        make_pool(constraints=["decode_speedup >= 2"])


def test_features_are_logs_of_shares_and_leave_out_what_never_changes(make_pool):
    axes = {"num_hidden_layers": {"values": list(range(20, 31))}}
    pool = make_pool(axes=axes, size=110_000_000, tolerance=0.1)
    assert len(pool) > 3
    assert pool.features() == pytest.approx(np.log(pool.columns["num_hidden_layers"] / 30)[:, None])
