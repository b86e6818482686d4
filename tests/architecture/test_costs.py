"""Costs against numbers worked out by hand; tests/families compares them with real models."""

from dataclasses import replace

import numpy as np
import pytest

from minitron_nas.architecture.costs import (
    costs_of,
    count_embedding_parameters,
    count_parameters,
    count_parameters_of,
    forward_flops_per_token,
    kv_cache_bytes_per_token,
    state_bytes_per_sequence,
)
from minitron_nas.architecture.kinds import Listed
from minitron_nas.architecture.layout import (
    HIDDEN,
    KEYS,
    NEURONS,
    QUERIES,
    VOCAB,
    Axis,
    Layout,
    axis_sizes,
    dim,
    only,
    row,
)
from minitron_nas.architecture.spec import Architecture

SMALL = Architecture("toy", 3, 10, 14, 6, 2, 4, 11)
TIED = Architecture("toy", 3, 10, 14, 6, 2, 4, 11, tie_word_embeddings=True)
TOY = Layout(
    model_type="toy",
    rows=(
        row("embed.weight", VOCAB, HIDDEN),
        row("blocks.{layer}.norm.weight", HIDDEN),
        row("blocks.{layer}.q.weight", QUERIES, HIDDEN),
        row("blocks.{layer}.k.weight", KEYS, HIDDEN),
        row("blocks.{layer}.v.weight", KEYS, HIDDEN),
        row("blocks.{layer}.o.weight", HIDDEN, QUERIES),
        row("blocks.{layer}.up.weight", NEURONS, HIDDEN),
        row("blocks.{layer}.down.weight", HIDDEN, NEURONS),
        row("norm.weight", HIDDEN),
        row("head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
)
# A layer: 10 norm, 24x10 queries, 8x10 keys, 8x10 values, 10x24 output, 14x10 up, 10x14 down.
LAYER_MATRICES = 240 + 80 + 80 + 240 + 140 + 140
LAYER = 10 + LAYER_MATRICES
EMBEDDING = 11 * 10


def test_parameters_are_the_sum_of_all_tensors() -> None:
    assert count_parameters(SMALL, TOY) == EMBEDDING + 3 * LAYER + 10 + EMBEDDING == 3020


def test_a_tied_embedding_counts_once() -> None:
    assert count_parameters(TIED, TOY) == 3020 - EMBEDDING


def test_embedding_parameters_are_the_look_up_and_an_untied_head() -> None:
    assert count_embedding_parameters(SMALL, TOY) == 220
    assert count_embedding_parameters(TIED, TOY) == 110


def test_arrays_of_shapes_are_counted_as_one_by_one() -> None:
    hidden, layers = np.array([4, 8, 10]), np.array([1, 2, 3])
    counts = count_parameters_of(TOY, SMALL, axis_sizes(SMALL) | {Axis.HIDDEN: hidden}, layers)
    single = [
        count_parameters(SMALL.reshaped({"hidden_size": h, "num_hidden_layers": n}), TOY)
        for h, n in [(4, 1), (8, 2), (10, 3)]
    ]
    assert counts.tolist() == single
    assert counts.dtype == np.int64


def test_a_model_of_more_than_two_billion_parameters_does_not_overflow() -> None:
    sizes = axis_sizes(SMALL) | {Axis.VOCAB: np.array([10**6]), Axis.HIDDEN: np.array([10**5])}
    # Two embeddings of 1e6 x 1e5, a layer of 92 x 1e5 matrix and 1e5 norm entries, one last norm.
    assert count_parameters_of(TOY, SMALL, sizes, np.array([1])).tolist() == [2 * 10**11 + 93 * 10**5 + 10**5]


@pytest.mark.parametrize("architecture", [SMALL, TIED])
def test_flops_are_two_per_matrix_weight_and_the_head_counts_tied_or_not(architecture: Architecture) -> None:
    attention = 2 * 2 * 6 * 4 * 100  # scores and mixing: 2 FLOPs x heads x head_dim x context, twice
    assert forward_flops_per_token(architecture, TOY, 100) == 3 * (2 * LAYER_MATRICES + attention) + 2 * 110


def test_flops_without_context_are_those_of_the_matrices() -> None:
    assert forward_flops_per_token(SMALL, TOY, 0) == 3 * 2 * LAYER_MATRICES + 2 * 110


def test_a_cached_token_is_a_key_and_a_value_per_group_and_layer() -> None:
    assert kv_cache_bytes_per_token(SMALL, TOY) == 3 * 2 * (2 * 4) * 2
    assert kv_cache_bytes_per_token(SMALL, TOY, bytes_per_value=1) == 3 * 2 * (2 * 4)


def test_llama_3_1_8b_caches_128_kib_a_token() -> None:
    llama = Architecture("llama", 32, 4096, 14336, 32, 8, 128, 128256)
    assert kv_cache_bytes_per_token(llama, TOY) == 128 * 1024


HYBRID = replace(
    TOY,
    rows=tuple(
        replace(each, kinds=("full",)) if each.name.split(".")[2:3] in (["q"], ["k"], ["v"], ["o"]) else each
        for each in TOY.rows
    )
    + only("mixer", row("blocks.{layer}.mix.weight", HIDDEN, dim("width"))),
    kinds=Listed("layer_types"),
    states={"mixer": HIDDEN * "states" + dim("width")},
)
MIXED = Architecture(
    "toy", 3, 10, 14, 6, 2, 4, 11, layer_kinds=("mixer", "full", "mixer"), fixed_sizes={"width": 9, "states": 5}
)


def test_layers_cost_what_their_kinds_have() -> None:
    attention, ffn = 240 + 80 + 80 + 240, 10 + 140 + 140
    assert count_parameters(MIXED, HYBRID) == 3 * ffn + attention + 2 * 90 + 10 + 2 * EMBEDDING
    assert kv_cache_bytes_per_token(MIXED, HYBRID) == 1 * 2 * (2 * 4) * 2
    assert state_bytes_per_sequence(MIXED, HYBRID) == 2 * (10 * 5 + 9) * 2
    assert state_bytes_per_sequence(MIXED, HYBRID, bytes_per_value=4) == 2 * (10 * 5 + 9) * 4
    assert state_bytes_per_sequence(SMALL, TOY) == 0
    assert forward_flops_per_token(MIXED, HYBRID, 5) == 2 * (3 * 280 + attention + 2 * 90) + 4 * 24 * 5 + 2 * 110


def test_shapes_of_fewer_layers_cost_what_the_shares_of_their_kinds_say() -> None:
    numbers = np.array([1, 2, 3])
    columns = {name: np.full(3, getattr(MIXED, name)) for name in HYBRID.shape_fields()} | {
        "num_hidden_layers": numbers
    }
    costs = costs_of(HYBRID, MIXED, columns, 5)
    shapes = [MIXED.reshaped({"num_hidden_layers": number}) for number in numbers.tolist()]
    assert [sorted(shape.layer_kinds) for shape in shapes] == [["full"], ["full", "mixer"], ["full", "mixer", "mixer"]]
    assert costs["num_parameters"].tolist() == [count_parameters(shape, HYBRID) for shape in shapes]
    assert costs["kv_cache_bytes_per_token"].tolist() == [32, 32, 32]
    assert costs["state_bytes_per_sequence"].tolist() == [state_bytes_per_sequence(shape, HYBRID) for shape in shapes]
    assert costs["state_bytes_per_sequence"].tolist() == [0, 118, 236]
    assert costs["forward_flops_per_token"].tolist() == [forward_flops_per_token(shape, HYBRID, 5) for shape in shapes]
