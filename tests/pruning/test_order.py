from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_nas.architecture.layout import (
    HEADWISE_QKV,
    HIDDEN,
    KEYS,
    NEURONS,
    QUERIES,
    VOCAB,
    Axis,
    TensorPlace,
    axis_sizes,
    dim,
    row,
)
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import InvalidArchitectureError, ScoresError
from minitron_nas.families.catalog import layout_of
from minitron_nas.importance.baselines import random_scores
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.pruning.order import PruningOrder

SHAPE = Architecture("llama", 3, 4, 5, 6, 2, 2, vocab_size=10)
SCORES = ImportanceScores(
    hidden=torch.tensor([1.0, 4.0, 2.0, 3.0]),
    neurons=torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0], [9.0, 8.0, 7.0, 6.0, 5.0]]),
    heads=torch.tensor(
        [[1.0, 9.0, 5.0, 60.0, 20.0, 40.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]
    ),
    kv_groups=torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0, 3.0]]),
    experts=torch.zeros(3, 0),
    layers=torch.tensor([0.1, 0.3, 0.2]),
)
ORDER = PruningOrder.from_scores(SCORES, SHAPE, ())
DIMS = (HIDDEN, NEURONS, KEYS, QUERIES)


def kept_of_teacher(dim, layer, target, order=ORDER, source=SHAPE):
    """Which of the teacher's entries a candidate keeps."""
    kept = order.kept_entries(dim, TensorPlace("", row("", dim), layer, None), source, target)
    return list(range(dim.size(axis_sizes(source)))) if kept is None else kept.tolist()


def test_every_axis_is_ranked_as_by_hand():
    assert ORDER.hidden.tolist() == [1, 3, 2, 0]
    assert ORDER.neurons[0].tolist() == [0, 2, 4, 3, 1]
    assert ORDER.kv_groups.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert ORDER.layers.tolist() == [[False, True, False], [False, True, True], [True, True, True]]


def test_scores_of_a_version_that_ranked_no_mixers_are_refused():
    shape = replace(SHAPE, mamba_num_heads=4, mamba_head_dim=2, mamba_num_groups=2)
    with pytest.raises(ScoresError, match="these scores rank no heads of Mamba mixers.*score it again"):
        PruningOrder.from_scores(SCORES, shape, ())


def test_query_heads_are_ranked_within_their_own_group():
    # Of all six heads of layer 0 the best three lie in group 1; yet each group keeps its own best.
    assert ORDER.group_heads[0].tolist() == [[1, 2, 0], [0, 2, 1]]


@pytest.mark.parametrize(
    ("changes", "dim", "layer", "kept"),
    [
        ({"hidden_size": 2}, HIDDEN, 0, [1, 3]),
        ({"intermediate_size": 3}, NEURONS, 0, [0, 2, 4]),
        ({"num_attention_heads": 4}, QUERIES, 0, [2, 3, 4, 5, 6, 7, 10, 11]),
        ({"num_attention_heads": 2}, QUERIES, 0, [2, 3, 6, 7]),
        ({"num_key_value_heads": 1}, QUERIES, 0, [6, 7, 8, 9, 10, 11]),
        ({"num_key_value_heads": 1}, KEYS, 0, [2, 3]),
        ({"num_key_value_heads": 1, "num_attention_heads": 2}, QUERIES, 1, [2, 3, 4, 5]),
        ({"num_attention_heads": 2}, KEYS, 0, [0, 1, 2, 3]),
    ],
)
def test_what_stays_is_as_by_hand_in_the_teachers_order(changes, dim, layer, kept):
    assert kept_of_teacher(dim, layer, SHAPE.reshaped(changes)) == kept


@pytest.mark.parametrize(
    ("dim", "kept"),
    [
        (QUERIES + KEYS + KEYS, [6, 7, 8, 9, 10, 11, 14, 15, 18, 19]),
        (NEURONS + NEURONS, [0, 2, 4, 5, 7, 9]),
        (VOCAB + HIDDEN, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13]),
    ],
)
def test_fused_dimensions_keep_each_part_by_itself(dim, kept):
    target = SHAPE.reshaped({"num_key_value_heads": 1, "intermediate_size": 3, "hidden_size": 2})
    assert kept_of_teacher(dim, 0, target) == kept


def test_interleaved_heads_keep_queries_keys_and_values_of_the_heads_that_stay():
    source = Architecture("gpt_neox", 3, 4, 5, 2, 2, 2, vocab_size=10)
    order = replace(ORDER, group_heads=torch.zeros(3, 2, 1, dtype=torch.int64))
    target = source.reshaped({"num_attention_heads": 1})
    assert kept_of_teacher(HEADWISE_QKV, 0, target, order, source) == [6, 7, 8, 9, 10, 11]


def test_each_expert_has_its_own_neurons_and_each_layer_its_own_experts():
    source = Architecture("mixtral", 1, 4, 3, 2, 2, 2, vocab_size=10, num_experts=2, num_experts_per_tok=1)
    scores = ImportanceScores(
        hidden=torch.ones(4),
        neurons=torch.tensor([[[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]]),
        heads=torch.ones(1, 2),
        kv_groups=torch.ones(1, 2),
        experts=torch.tensor([[1.0, 2.0]]),
        layers=torch.ones(1),
    )
    order = PruningOrder.from_scores(scores, source, ())
    target = source.reshaped({"intermediate_size": 2, "num_experts": 1})
    assert order.kept_experts(0, 1) == [1]
    for expert, kept in ((0, [1, 2]), (1, [0, 1])):
        place = TensorPlace("", row("", NEURONS), 0, expert)
        assert order.kept_entries(NEURONS, place, source, target).tolist() == kept


def test_the_vocabulary_is_not_cut():
    place = TensorPlace("", row("", VOCAB), None, None)
    assert ORDER.kept_entries(VOCAB, place, SHAPE, SHAPE.reshaped({"hidden_size": 1})) is None


def test_the_layers_that_stay_are_the_most_important_ones_in_order():
    assert [ORDER.kept_layers(count) for count in (3, 2, 1)] == [[0, 1, 2], [1, 2], [1]]


@pytest.mark.parametrize("protected", [(0, -1), (-3, 2), (2, 0)])
def test_protected_layers_stay_to_the_last(protected):
    order = PruningOrder.from_scores(SCORES, SHAPE, protected)
    assert [order.kept_layers(count) for count in (3, 2)] == [[0, 1, 2], [0, 2]]


@pytest.mark.parametrize("layer", [3, 7, -4])
def test_a_protected_layer_that_does_not_exist_is_refused_with_those_that_do(layer):
    message = rf"protected layer {layer} does not exist; the source has 3 layers \(0 to 2, or -3 to -1"
    with pytest.raises(InvalidArchitectureError, match=message):
        PruningOrder.from_scores(SCORES, SHAPE, (0, layer))


def test_a_table_says_which_layers_stay_where_blocks_are_not_nested():
    table = torch.tensor([[0, 0, 1], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    order = PruningOrder.from_scores(SCORES, SHAPE, (), table)
    assert [order.kept_layers(count) for count in (3, 2, 1)] == [[0, 1, 2], [0, 1], [2]]


def test_a_number_of_layers_that_was_not_measured_is_refused_with_those_that_were():
    table = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    order = PruningOrder.from_scores(SCORES, SHAPE, (), table)
    message = (
        r"which layers a model of num_hidden_layers=2 keeps was not measured, only for 1, 3; name the number in "
        r"space\.axes\.num_hidden_layers, or choose importance\.depth\.mode=layers"
    )
    with pytest.raises(InvalidArchitectureError, match=message):
        order.kept_layers(2)


def test_the_scores_stay_as_they_are():
    PruningOrder.from_scores(SCORES, SHAPE, (0, -1))
    assert SCORES.layers.tolist() == pytest.approx([0.1, 0.3, 0.2])


def test_an_order_comes_back_from_its_file(tmp_path):
    ORDER.save(tmp_path / "order.safetensors")
    loaded = PruningOrder.load(tmp_path / "order.safetensors")
    for name in PruningOrder.__dataclass_fields__:
        assert torch.equal(getattr(loaded, name), getattr(ORDER, name))


@st.composite
def orders(draw):
    """A random shape with random distinct scores, and two shapes to prune it to, one within the other."""
    groups, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    source = Architecture(
        "llama", draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9)), groups * per_group, groups,
        draw(st.integers(1, 3)), vocab_size=10,
    )  # fmt: skip

    def smaller(shape):
        kv = draw(st.integers(1, shape.num_key_value_heads))
        return source.reshaped(
            {
                "num_hidden_layers": draw(st.integers(1, shape.num_hidden_layers)),
                "hidden_size": draw(st.integers(1, shape.hidden_size)),
                "intermediate_size": draw(st.integers(1, shape.intermediate_size)),
                "num_key_value_heads": kv,
                "num_attention_heads": kv * draw(st.integers(1, shape.heads_per_group)),
            }
        )

    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    layers = source.num_hidden_layers
    sizes = {
        "hidden": (source.hidden_size,),
        "neurons": (layers, source.intermediate_size),
        "heads": (layers, source.num_attention_heads),
        "kv_groups": (layers, groups),
        "experts": (layers, 0),
        "layers": (layers,),
    }
    scores = ImportanceScores(
        **{name: torch.argsort(torch.rand(size, generator=generator), dim=-1).float() for name, size in sizes.items()}
    )
    large = smaller(source)
    return source, scores, large, smaller(large)


def best(scores, count):
    """The indices of the highest scores, the plain way."""
    return sorted(sorted(range(len(scores)), key=lambda index: -scores[index])[:count])


@settings(max_examples=40)
@given(orders())
def test_what_stays_is_exactly_the_best_by_score(drawn):
    source, scores, target, _ = drawn
    order = PruningOrder.from_scores(scores, source, ())
    width, per_group = source.head_dim, source.heads_per_group
    assert order.kept_layers(target.num_hidden_layers) == best(scores.layers.tolist(), target.num_hidden_layers)
    for layer in range(source.num_hidden_layers):
        groups = best(scores.kv_groups[layer].tolist(), target.num_key_value_heads)
        heads = [
            group * per_group + place
            for group in groups
            for place in best(
                scores.heads[layer][group * per_group : (group + 1) * per_group].tolist(), target.heads_per_group
            )
        ]
        expected = {
            HIDDEN: best(scores.hidden.tolist(), target.hidden_size),
            NEURONS: best(scores.neurons[layer].tolist(), target.intermediate_size),
            KEYS: [group * width + channel for group in groups for channel in range(width)],
            QUERIES: [head * width + channel for head in heads for channel in range(width)],
        }
        assert {each: kept_of_teacher(each, layer, target, order, source) for each in DIMS} == expected


@settings(max_examples=40)
@given(orders())
def test_what_a_smaller_shape_keeps_a_larger_one_keeps_too_in_ascending_order(drawn):
    source, scores, large, small = drawn
    order = PruningOrder.from_scores(scores, source, ())
    assert set(order.kept_layers(small.num_hidden_layers)) <= set(order.kept_layers(large.num_hidden_layers))
    for layer in range(source.num_hidden_layers):
        for dimension in DIMS:
            more, fewer = (kept_of_teacher(dimension, layer, shape, order, source) for shape in (large, small))
            assert set(fewer) <= set(more) <= set(range(dimension.size(axis_sizes(source))))
            assert fewer == sorted(set(fewer))


@settings(max_examples=20)
@given(orders())
def test_pruning_nothing_keeps_everything_in_the_teachers_order(drawn):
    source, scores, _, _ = drawn
    order = PruningOrder.from_scores(scores, source, ())
    for layer in range(source.num_hidden_layers):
        for dimension in DIMS:
            kept = kept_of_teacher(dimension, layer, source, order, source)
            assert kept == list(range(dimension.size(axis_sizes(source))))


def test_a_number_as_a_factor_stays_whole():
    gated = dim(Axis.KV_GROUPS, Axis.GROUP_HEADS, 2, Axis.HEAD_DIM)
    target = SHAPE.reshaped({"num_attention_heads": 2})
    queries = kept_of_teacher(QUERIES, 0, target)
    heads = [entry // 2 for entry in queries[::2]]
    assert kept_of_teacher(gated, 0, target) == [4 * head + offset for head in heads for offset in range(4)]
    assert kept_of_teacher(dim("width") + KEYS, 0, target, source=replace(SHAPE, fixed_sizes={"width": 3})) == [
        *range(7)
    ]


def test_experts_in_groups_are_ranked_in_rounds_the_best_of_each_group_first() -> None:
    shape = Architecture(
        "deepseek_v3", 1, 4, 8, 1, 1, 4, 16, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=1,
        num_expert_groups=2,
    )  # fmt: skip
    scores = ImportanceScores(
        hidden=torch.zeros(4),
        neurons=torch.zeros(1, 8),
        heads=torch.zeros(1, 1),
        kv_groups=torch.zeros(1, 1),
        experts=torch.tensor([[9.0, 8.0, 7.0, 1.0, 3.0, 2.0]]),
        layers=torch.zeros(1),
        expert_neurons=torch.zeros(1, 6, 1),
    )
    order = PruningOrder.from_scores(scores, shape, (0,))
    assert order.experts.tolist() == [[0, 4, 1, 5, 2, 3]]
    assert order.kept_experts(0, 4) == [0, 1, 4, 5]
    plain = PruningOrder.from_scores(scores, replace(shape, num_expert_groups=0), (0,))
    assert plain.experts.tolist() == [[0, 1, 2, 4, 5, 3]]


def test_every_axis_of_neurons_has_a_ranking_of_its_own() -> None:
    source = Architecture(
        "qwen2_moe", 1, 4, 8, 1, 1, 4, 16, num_experts=2, moe_intermediate_size=3, shared_expert_intermediate_size=4
    )
    layout = layout_of("qwen2_moe")
    scores = replace(
        random_scores(source, layout, 0),
        expert_neurons=torch.tensor([[[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]]),
        shared_neurons=torch.tensor([[1.0, 4.0, 2.0, 3.0]]),
    )
    order = PruningOrder.from_scores(scores, source, (0,))
    target = source.reshaped({"moe_intermediate_size": 2, "shared_expert_intermediate_size": 3})
    kept = {
        place.name.removeprefix("model.layers.0.mlp."): order.kept_entries(place.row.dims[0], place, source, target)
        for place in layout.tensors(source)
        if place.name.endswith("up_proj.weight")
    }
    assert {name: entries.tolist() for name, entries in kept.items() if entries is not None} == {
        "experts.0.up_proj.weight": [1, 2],
        "experts.1.up_proj.weight": [0, 1],
        "shared_expert.up_proj.weight": [1, 2, 3],
    }
