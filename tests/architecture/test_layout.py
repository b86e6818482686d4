from dataclasses import replace

import pytest

from minitron_nas.architecture.kinds import Listed
from minitron_nas.architecture.layout import (
    GATE_UP_BY_NEURON,
    HIDDEN,
    KEYS,
    NEURONS,
    QUERIES,
    VOCAB,
    Axis,
    Layout,
    axis_sizes,
    dim,
    norm,
    only,
    row,
    stored_tensor,
)
from minitron_nas.architecture.spec import Architecture

SMALL = Architecture(
    model_type="toy",
    num_hidden_layers=2,
    hidden_size=10,
    intermediate_size=14,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=11,
)
TOY = Layout(
    model_type="toy",
    rows=(
        row("embed.weight", VOCAB, HIDDEN),
        norm("blocks.{layer}.norm.weight", HIDDEN),
        row("blocks.{layer}.norm.bias", HIDDEN),
        row("blocks.{layer}.q.weight", QUERIES, HIDDEN),
        row("blocks.{layer}.k.weight", KEYS, HIDDEN),
        row("blocks.{layer}.k.bias", KEYS, when="attention_bias"),
        row("blocks.{layer}.o.weight", HIDDEN, QUERIES),
        row("blocks.{layer}.up.weight", NEURONS, HIDDEN),
        row("blocks.{layer}.down.weight", HIDDEN, NEURONS),
        row("head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
)


def changed(**fields: bool) -> Architecture:
    return Architecture(**(SMALL.to_dict() | fields))


def test_a_dimension_times_a_factor_has_so_many_entries_for_each_of_its_own() -> None:
    states = (QUERIES + dim("width")) * "states" * 3
    assert states.parts == ((*QUERIES.parts[0], "states", 3), ("width", "states", 3))
    assert states.fixed_keys == {"width", "states"}
    assert states.size(axis_sizes(SMALL) | {"width": 5, "states": 7}) == (6 * 4 + 5) * 7 * 3


def test_every_axis_has_the_size_of_its_name() -> None:
    assert axis_sizes(SMALL) == {
        Axis.VOCAB: 11,
        Axis.HIDDEN: 10,
        Axis.NEURONS: 14,
        Axis.KV_GROUPS: 2,
        Axis.GROUP_HEADS: 3,
        Axis.HEAD_DIM: 4,
        Axis.POSITIONS: 0,
        Axis.EXPERTS: 0,
        Axis.EXPERT_NEURONS: 0,
        Axis.SHARED_NEURONS: 0,
        Axis.CONV_CHANNELS: 10,
        Axis.WIDE_NEURONS: 14,
        Axis.LAYERS: SMALL.num_hidden_layers,
        Axis.MAMBA_GROUPS: 0,
        Axis.MAMBA_GROUP_HEADS: 0,
        Axis.MAMBA_HEAD_DIM: 0,
    }


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embed.weight", (11, 10)),
        ("blocks.{layer}.norm.weight", (10,)),
        ("blocks.{layer}.q.weight", (24, 10)),
        ("blocks.{layer}.k.weight", (8, 10)),
        ("blocks.{layer}.o.weight", (10, 24)),
        ("blocks.{layer}.down.weight", (10, 14)),
    ],
)
def test_a_dimension_is_the_product_of_its_axes(name: str, shape: tuple[int, ...]) -> None:
    (found,) = [table_row for table_row in TOY.rows if table_row.name == name]
    assert found.shape(SMALL) == shape


def test_rows_of_a_layer_come_once_per_layer_and_others_once() -> None:
    names = [name for name, *_ in TOY.tensors(SMALL)]
    assert len(names) == len(set(names)) == 2 + 7 * 2
    assert names[:3] == ["embed.weight", "blocks.0.norm.weight", "blocks.1.norm.weight"]
    assert {layer for name, _, layer, _ in TOY.tensors(SMALL) if name.startswith("blocks.1.")} == {1}
    assert {layer for name, _, layer, _ in TOY.tensors(SMALL) if not name.startswith("blocks.")} == {None}


def test_a_bias_exists_only_where_the_architecture_says_so() -> None:
    plain = {name for name, *_ in TOY.tensors(SMALL)}
    biased = {name for name, *_ in TOY.tensors(changed(attention_bias=True))}
    assert biased - plain == {"blocks.0.k.bias", "blocks.1.k.bias"}
    assert plain <= biased


def test_tied_embeddings_have_no_output_head() -> None:
    untied = {name for name, *_ in TOY.tensors(SMALL)}
    tied = {name for name, *_ in TOY.tensors(changed(tie_word_embeddings=True))}
    assert untied - tied == {"head.weight"}


def test_the_places_where_importance_is_measured_follow_from_the_rows() -> None:
    assert [found.name for found in TOY.readers()] == ["blocks.{layer}.q.weight", "blocks.{layer}.up.weight"]
    assert TOY.writer(Axis.NEURONS).name == "blocks.{layer}.down.weight"
    assert TOY.writer(Axis.GROUP_HEADS).name == "blocks.{layer}.o.weight"
    assert TOY.layer_module == "blocks.{layer}"


def test_a_family_names_the_sizes_that_its_rows_run_along() -> None:
    fields = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    assert TOY.shape_fields() == fields
    assert not TOY.has_experts
    assert TOY.neuron_axis is Axis.NEURONS


def test_parts_that_lie_one_after_the_other_add_up() -> None:
    fused = row("qkv", QUERIES + KEYS + KEYS, HIDDEN)
    assert fused.shape(SMALL) == (24 + 8 + 8, 10)
    assert row("interleaved", dim(Axis.KV_GROUPS, 3, Axis.HEAD_DIM)).shape(SMALL) == (2 * 3 * 4,)
    assert Axis.KV_GROUPS in QUERIES + HIDDEN
    assert Axis.VOCAB not in QUERIES + HIDDEN


def test_experts_have_a_tensor_each() -> None:
    layout = Layout(model_type="toy", rows=(row("{layer}.experts.{expert}.up", NEURONS, HIDDEN),))
    places = list(layout.tensors(Architecture(**(SMALL.to_dict() | {"num_experts": 3, "num_experts_per_tok": 1}))))
    assert [(place.name, place.layer, place.expert) for place in places][:4] == [
        ("0.experts.0.up", 0, 0),
        ("0.experts.1.up", 0, 1),
        ("0.experts.2.up", 0, 2),
        ("1.experts.0.up", 1, 0),
    ]
    assert len(places) == 6


HYBRID = Layout(
    model_type="toy",
    rows=(
        norm("blocks.{layer}.norm.weight", HIDDEN),
        *only(
            "mixer",
            row("blocks.{layer}.mix.in.weight", dim("mixer_heads", "mixer_dim") + dim(3), HIDDEN),
            row("blocks.{layer}.mix.conv.weight", dim("mixer_heads", "mixer_dim"), dim(), dim(5)),
            row("blocks.{layer}.mix.out.weight", HIDDEN, dim("mixer_heads", "mixer_dim")),
        ),
        *only(
            "attention",
            norm("blocks.{layer}.own_norm.weight", HIDDEN),
            row("blocks.{layer}.q.weight", dim(Axis.KV_GROUPS, Axis.GROUP_HEADS, 2, Axis.HEAD_DIM), HIDDEN),
            row("blocks.{layer}.k.weight", KEYS, HIDDEN),
            row("blocks.{layer}.o.weight", HIDDEN, QUERIES),
        ),
        row("blocks.{layer}.up.weight", NEURONS, HIDDEN),
        row("blocks.{layer}.down.weight", HIDDEN, NEURONS),
    ),
    kinds=Listed("layer_types"),
)
MIXED = replace(SMALL, layer_kinds=("mixer", "attention"), fixed_sizes={"mixer_heads": 7, "mixer_dim": 2})


def test_fixed_sizes_are_numbers_and_keys_of_the_config() -> None:
    shapes = {table_row.name: table_row.shape(MIXED) for table_row in HYBRID.rows}
    assert shapes["blocks.{layer}.mix.in.weight"] == (7 * 2 + 3, 10)
    assert shapes["blocks.{layer}.mix.conv.weight"] == (14, 1, 5)
    assert shapes["blocks.{layer}.q.weight"] == (2 * 3 * 2 * 4, 10)
    assert HYBRID.fixed_keys() == {"mixer_heads", "mixer_dim"}
    assert HYBRID.shape_fields() == TOY.shape_fields()


def test_several_keys_stand_for_the_sum_of_their_numbers() -> None:
    per_head = dim(Axis.KV_GROUPS, ("mixer_heads", "mixer_dim"))
    assert row("latents", per_head).shape(MIXED) == (2 * (7 + 2),)
    assert per_head.fixed_keys == {"mixer_heads", "mixer_dim"}
    assert per_head.axes == {Axis.KV_GROUPS}


def test_an_axis_is_no_fixed_size() -> None:
    with pytest.raises(ValueError, match=r"'hidden_size' is a size that pruning changes; write Axis\.HIDDEN"):
        dim("mixer_heads", "hidden_size")


def test_rows_of_a_kind_stand_for_the_layers_of_that_kind() -> None:
    names = [place.name for place in HYBRID.tensors(MIXED)]
    assert [name for name in names if ".mix." in name] == [
        f"blocks.0.mix.{part}.weight" for part in ("in", "conv", "out")
    ]
    assert [name for name in names if ".q." in name] == ["blocks.1.q.weight"]
    assert [name for name in names if ".up." in name] == ["blocks.0.up.weight", "blocks.1.up.weight"]


def test_every_kind_of_layer_has_its_own_reader_and_norm() -> None:
    assert [found.name for found in HYBRID.readers("mixer")] == [
        "blocks.{layer}.mix.in.weight",
        "blocks.{layer}.up.weight",
    ]
    assert [found.name for found in HYBRID.readers("attention")] == [
        "blocks.{layer}.q.weight",
        "blocks.{layer}.up.weight",
    ]
    rows = {table_row.name: table_row for table_row in HYBRID.rows}
    assert HYBRID.norm_before(rows["blocks.{layer}.mix.in.weight"]).name == "blocks.{layer}.norm.weight"
    assert HYBRID.norm_before(rows["blocks.{layer}.q.weight"]).name == "blocks.{layer}.own_norm.weight"
    assert HYBRID.has_axis(Axis.KV_GROUPS, "attention")
    assert not HYBRID.has_axis(Axis.KV_GROUPS, "mixer")


def test_a_slice_of_a_stack_is_a_tensor_of_an_expert_and_may_lie_the_other_way_round() -> None:
    rows = (
        row("blocks.{layer}.experts.up[{expert}]", HIDDEN, GATE_UP_BY_NEURON, inputs_first=True),
        row("blocks.{layer}.experts.down[{expert}]", HIDDEN, NEURONS),
        row("blocks.{layer}.mlp.{expert}.down.weight", HIDDEN, NEURONS),
    )
    up, down, _ = rows
    layout = Layout(model_type="toy", rows=rows, renamed=((".experts.down", ".mlp.out"),))
    assert [each.is_slice for each in rows] == [True, True, False]
    assert all(each.per_expert for each in rows)
    assert up.shape(SMALL) == (10, 28)
    assert (layout.input_dim(up), layout.output_dim(up)) == (HIDDEN, GATE_UP_BY_NEURON)
    assert (layout.input_dim(down), layout.output_dim(down)) == (NEURONS, HIDDEN)
    assert [layout.module_of(each) for each in rows] == [
        "blocks.{layer}.experts", "blocks.{layer}.mlp", "blocks.{layer}.mlp",
    ]  # fmt: skip
    places = layout.tensors(Architecture(**(SMALL.to_dict() | {"num_experts": 2, "num_experts_per_tok": 1})))
    assert [(name, stored_tensor(name)) for name, *_ in places][1:5] == [
        ("blocks.0.experts.up[1]", "blocks.0.experts.up"),
        ("blocks.1.experts.up[0]", "blocks.1.experts.up"),
        ("blocks.1.experts.up[1]", "blocks.1.experts.up"),
        ("blocks.0.experts.down[0]", "blocks.0.experts.down"),
    ]
    assert stored_tensor("blocks.0.mlp.1.down.weight") == "blocks.0.mlp.1.down.weight"
