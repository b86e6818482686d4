"""Deliberately wrong tables fail the suite, and where a tensor is wrong it is named."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from minitron_nas.architecture.kinds import AllOrNone, Indexed, Listed, Paired
from minitron_nas.architecture.layout import (
    CONV_CHANNELS,
    EXPERT_NEURONS,
    EXPERTS,
    GATE_UP_BY_NEURON,
    HEADWISE_QKV,
    HIDDEN,
    KEYS,
    MAMBA_CHANNELS,
    MAMBA_HEADS,
    NEURONS,
    QUERIES,
    WIDE_NEURONS,
    Axis,
    Dim,
    Layout,
    dim,
    row,
)
from minitron_nas.errors import CheckpointError, InvalidArchitectureError
from minitron_nas.families.catalog import layout_of
from minitron_nas.families.nemotron_h import STATES
from minitron_nas.testing import Subject, check_family, tiny_config
from minitron_nas.testing.conformance import (
    check_last_layer,
    check_masked_teacher,
    check_norms,
    check_states,
    check_units,
)
from minitron_nas.testing.tiny import TINY_E2B
from minitron_nas.testing.use import check_depth, check_packing, check_scores

LAYER = "model.layers.{layer}."


def with_dims(name: str, ending: str, *dims: Dim) -> Layout:
    """Describe one tensor of a family otherwise."""
    layout = layout_of(name)
    assert sum(row.name.endswith(ending) for row in layout.rows) == 1
    return replace(
        layout, rows=tuple(replace(row, dims=dims) if row.name.endswith(ending) else row for row in layout.rows)
    )


def replace_in(name: str, kind: str, ending: str, *dims: Dim) -> Layout:
    """Describe one tensor of the layers of a kind otherwise."""
    layout = layout_of(name)
    return replace(
        layout,
        rows=tuple(
            replace(row, dims=dims) if row.name.endswith(ending) and kind in row.kinds else row for row in layout.rows
        ),
    )


def without(name: str, ending: str) -> Layout:
    layout = layout_of(name)
    return replace(layout, rows=tuple(row for row in layout.rows if not row.name.endswith(ending)))


def no_buffers(name: str) -> Layout:
    layout = layout_of(name)
    return replace(layout, rows=tuple(replace(row, is_buffer=False) for row in layout.rows))


def tied_to_nothing(name: str) -> Layout:
    """Take the number of shared experts for one, whatever the config says."""
    layout = layout_of(name)
    return replace(layout, config_keys={**layout.config_keys, "num_shared_experts": ("num_hidden_groups",)})


def outputs_first(name: str) -> Layout:
    layout = layout_of(name)
    return replace(layout, rows=tuple(replace(row, inputs_first=False) for row in layout.rows))


def renamed_row(name: str, ending: str, other: str) -> Layout:
    layout = layout_of(name)
    rows = (replace(row, name=row.name.replace(ending, other)) for row in layout.rows)
    return replace(layout, rows=tuple(rows))


WRONG: dict[str, tuple[Callable[[], Layout], str]] = {
    "swapped axes": (lambda: with_dims("llama", "up_proj.weight", HIDDEN, NEURONS), "mlp.up_proj.weight"),
    "missing tensor": (lambda: without("llama", "k_proj.weight"), "self_attn.k_proj.weight"),
    "missing bias": (lambda: without("qwen2", "v_proj.bias"), "self_attn.v_proj.bias"),
    "fusion order": (lambda: with_dims("phi3", "qkv_proj.weight", KEYS + QUERIES + KEYS, HIDDEN), "qkv_proj.weight"),
    "not interleaved": (
        lambda: with_dims("gpt_neox", "query_key_value.weight", QUERIES + KEYS + KEYS, HIDDEN),
        "attention.query_key_value.weight",
    ),
    "interleaved": (lambda: with_dims("gpt2", "c_attn.bias", HEADWISE_QKV), "attn.c_attn.bias"),
    "order of heads": (
        lambda: with_dims("llama", "q_proj.weight", dim(Axis.GROUP_HEADS, Axis.KV_GROUPS, Axis.HEAD_DIM), HIDDEN),
        "self_attn.q_proj.weight",
    ),
    "order of head and channel": (
        lambda: with_dims("llama", "v_proj.weight", dim(Axis.HEAD_DIM, Axis.KV_GROUPS), HIDDEN),
        "self_attn.v_proj.weight",
    ),
    "a stack that is no stack": (
        lambda: renamed_row("gpt_oss", "experts.down_proj[{expert}]", "experts.{expert}.down_proj"),
        "mlp.experts.0.down_proj' of shape (96, 48) is missing",
    ),
    "gate and up not interleaved": (
        lambda: with_dims("gpt_oss", "gate_up_proj[{expert}]", HIDDEN, NEURONS + NEURONS),
        "mlp.experts.gate_up_proj[{expert}]",
    ),
    "gate and up interleaved": (
        lambda: with_dims("granitemoe", "input_linear.weight[{expert}]", GATE_UP_BY_NEURON, HIDDEN),
        "block_sparse_moe.input_linear.weight[{expert}]",
    ),
    "a shared expert as wide as the others": (
        lambda: with_dims("qwen2_moe", "shared_expert.down_proj.weight", HIDDEN, EXPERT_NEURONS),
        "mlp.shared_expert.down_proj.weight",
    ),
    "a buffer that runs along nothing": (
        lambda: with_dims("glm4_moe", "e_score_correction_bias", dim()),
        "mlp.gate.e_score_correction_bias",
    ),
    "a convolution of the channels that stay in the stream": (
        lambda: with_dims("lfm2", "conv.out_proj.weight", HIDDEN, HIDDEN),
        "conv.in_proj.weight",
    ),
    "a convolution between neurons": (
        lambda: with_dims("lfm2", "feed_forward.w2.weight", HIDDEN, CONV_CHANNELS),
        "feed_forward.w2.weight",
    ),
    "a width that is adjusted": (lambda: replace(layout_of("lfm2"), ffn_width=None), "feed_forward.w1.weight"),
    "experts in the layers that are listed for the others": (
        lambda: replace(layout_of("llama4_text"), kinds=Indexed("moe_layers", listed="dense", others="experts")),
        "layers.1.feed_forward.gate_proj.weight",
    ),
    "gates and ups in turns": (
        lambda: with_dims("llama4_text", "gate_up_proj[{expert}]", HIDDEN, dim(Axis.EXPERT_NEURONS, 2)),
        "experts.gate_up_proj[{expert}]",
    ),
    "states of a mixer before its inputs": (
        lambda: with_dims(
            "nemotron_h", "mixer.in_proj.weight", MAMBA_CHANNELS + STATES + MAMBA_CHANNELS + MAMBA_HEADS, HIDDEN
        ),
        "mixer.in_proj.weight",
    ),
    "a mixer of neurons": (
        lambda: with_dims("granitemoehybrid", "mamba.out_proj.weight", HIDDEN, NEURONS),
        "mamba.out_proj.weight",
    ),
    "heads of layers of another kind": (
        lambda: replace_in("gemma4_text", "full_attention", "o_proj.weight", HIDDEN, QUERIES),
        "layers.1.self_attn.o_proj.weight",
    ),
    "a size that follows from others": (
        lambda: replace(layout_of("helium"), head_dim_is_derived=False),
        "layers.0.self_attn.o_proj.weight' gets shape",
    ),
}


def in_layers(name: str, ending: str, *kinds: str) -> Layout:
    """Say that layers of other kinds have a tensor; of none, that all have it."""
    layout = layout_of(name)
    return replace(
        layout, rows=tuple(replace(row, kinds=kinds) if row.name.endswith(ending) else row for row in layout.rows)
    )


GATES_BEHIND = dim(2, Axis.KV_GROUPS, Axis.GROUP_HEADS, Axis.HEAD_DIM)
WRONG |= {
    "in all layers": (lambda: in_layers("qwen3_5_text", "o_proj.weight"), "layers.0.self_attn.o_proj.weight"),
    "in layers of another kind": (
        lambda: in_layers("nemotron_h", "q_proj.weight", "linear_attention"),
        "layers.0.mixer.q_proj.weight",
    ),
    "a fixed size left out": (
        lambda: with_dims("falcon_h1", "mamba.D", dim("mamba_n_heads", "mamba_d_conv")),
        "layers.0.mamba.D",
    ),
    "all queries before all gates": (
        lambda: with_dims("qwen3_5_text", "q_proj.weight", GATES_BEHIND, HIDDEN),
        "self_attn.q_proj.weight",
    ),
    "a fixed size taken for heads": (
        lambda: with_dims("qwen3_5_text", "in_proj_a.weight", dim(Axis.KV_GROUPS, Axis.GROUP_HEADS), HIDDEN),
        "linear_attn.in_proj_a.weight",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_row_is_named(tmp_path: Path, fault: str) -> None:
    make, tensor = WRONG[fault]
    layout = make()
    with pytest.raises((AssertionError, CheckpointError, IndexError), match=re.escape(tensor)):
        check_family(layout, tiny_config(layout.model_type), tmp_path)


def of_gemma(**changes: Any) -> Layout:
    return replace(layout_of("gemma4_text"), **changes)


def neurons_of_others() -> Layout:
    """Say of FFNs in layers that share keys that they have as many neurons as others."""
    layout = layout_of("gemma4_text")
    rows = (
        replace(row, dims=tuple(NEURONS if each == WIDE_NEURONS else each for each in row.dims)) for row in layout.rows
    )
    return replace(layout, rows=tuple(rows))


TOKENS = dim("vocab_size_per_layer_input")
BY_CHANNEL = dim("hidden_size_per_layer_input", Axis.LAYERS)
OF_EVERY_LAYER: dict[str, tuple[Callable[[], Layout], str]] = {
    "channels of all layers in turns": (
        lambda: with_dims("gemma4_text", "embed_tokens_per_layer.weight", TOKENS, BY_CHANNEL),
        "model.embed_tokens_per_layer.weight",
    ),
    "rows of all layers in turns": (
        lambda: with_dims("gemma4_text", "per_layer_model_projection.weight", BY_CHANNEL, HIDDEN),
        "model.per_layer_model_projection.weight",
    ),
    "an embedding of the layers that stay": (
        lambda: with_dims(
            "gemma4_text", "per_layer_projection_norm.weight", dim(Axis.LAYERS, "hidden_size_per_layer_input")
        ),
        "per_layer_projection_norm.weight",
    ),
    "keys of their own in all layers": (
        lambda: of_gemma(kinds=Paired(Listed("layer_types"), AllOrNone("enable_moe_block", having="experts"))),
        "model.layers.4.self_attn.k_proj.weight",
    ),
    "neurons of others": (neurons_of_others, "model.layers.4.mlp.gate_proj.weight"),
    "layers that share keys taken for as wide as others": (
        lambda: of_gemma(config_keys={**layout_of("gemma4_text").config_keys, "double_wide_ffn": ()}),
        "model.layers.4.mlp.gate_proj.weight",
    ),
    "embeddings of every layer left out": (
        lambda: without("gemma4_text", "embed_tokens_per_layer.weight"),
        "model.embed_tokens_per_layer.weight",
    ),
}


@pytest.mark.parametrize("fault", OF_EVERY_LAYER)
def test_a_wrong_row_of_layers_that_read_more_than_hidden_states_is_named(tmp_path: Path, fault: str) -> None:
    make, tensor = OF_EVERY_LAYER[fault]
    with pytest.raises((AssertionError, CheckpointError), match=re.escape(tensor)):
        check_family(make(), tiny_config("gemma4_text", **TINY_E2B), tmp_path)


def of_sarvam(fused: Dim = QUERIES + KEYS + KEYS, renamed: str = ".self_attn.q_proj") -> Layout:
    """Describe GLM 4.5's layers as Sarvam's files hold them: queries, keys and values fused, which memory splits."""
    glm = layout_of("glm4_moe")
    others = {
        "embed_tokens": "word_embeddings",
        "self_attn.q_norm": "attention.query_layernorm",
        "self_attn.k_norm": "attention.key_layernorm",
        "self_attn.o_proj": "attention.dense",
        "e_score_correction_bias": "expert_bias",
    }

    def renamed_in_files(name: str) -> str:
        return next((name.replace(own, stored) for own, stored in others.items() if own in name), name)

    first = next(number for number, each in enumerate(glm.rows) if "q_proj" in each.name)
    rows = [
        replace(each, name=renamed_in_files(each.name)) for each in glm.rows if not re.search("[qkv]_proj", each.name)
    ]
    rows.insert(first, row("model.layers.{layer}.attention.query_key_value.weight", fused, HIDDEN))
    back = tuple((stored, own) for own, stored in others.items())
    names = ((".attention.query_key_value", renamed), *back) if renamed else back
    return replace(glm, model_type="sarvam_moe", rows=tuple(rows), renamed=names, defaults={"use_qk_norm": True})


SARVAM = AutoConfig.for_model(
    "sarvam_moe", vocab_size=320, hidden_size=48, intermediate_size=96, moe_intermediate_size=40, num_hidden_layers=4,
    num_attention_heads=6, num_key_value_heads=2, head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
    topk_group=1, n_shared_experts=1, first_k_dense_replace=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def test_a_tensor_that_transformers_splits_as_it_loads_is_described_as_in_files(tmp_path: Path) -> None:
    subject = Subject.make(of_sarvam(), SARVAM, tmp_path)
    for check in (check_units, check_masked_teacher, check_scores):
        check(subject)


@pytest.mark.parametrize(
    ("changes", "check", "said"),
    [
        ({"fused": KEYS + QUERIES + KEYS}, check_units, "attention.query_key_value.weight"),
        ({"renamed": ""}, check_scores, "has no attribute `attention`"),
    ],
)
def test_a_wrong_table_of_what_transformers_splits_is_caught(
    tmp_path: Path, changes: dict[str, Any], check: Callable[[Subject], None], said: str
) -> None:
    with pytest.raises((AssertionError, AttributeError), match=said):
        check(Subject.make(of_sarvam(**changes), SARVAM, tmp_path))


def test_a_table_without_a_norm_over_hidden_channels_is_caught(tmp_path: Path) -> None:
    subject = replace(
        Subject.make(layout_of("llama"), tiny_config("llama"), tmp_path), layout=without("llama", "norm.weight")
    )
    with pytest.raises(AssertionError, match="the table names no norm over hidden channels"):
        check_norms(subject)


def test_a_table_that_does_not_know_what_the_last_layer_is_taken_for_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a student of the first 1 layers is refused, .* takes layers of"):
        check_last_layer(Subject.make(of_gemma(last_kind=""), tiny_config("gemma4_text"), tmp_path))


@pytest.mark.parametrize("name", ["llama", "gemma4_text"])
def test_a_table_by_which_layers_keep_no_keys_is_caught(tmp_path: Path, name: str) -> None:
    table = replace(layout_of(name), cached=dim(0))
    with pytest.raises(AssertionError, match=r"layer 0 keeps keys and values, the table says that it does not"):
        check_states(Subject.make(table, tiny_config(name), tmp_path))


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        pytest.param(lambda: replace(layout_of("llama"), states={"": HIDDEN}), "a state goes on", id="no state"),
        pytest.param(lambda: replace(layout_of("nemotron_h"), states={}), "packed documents change", id="a state"),
    ],
)
def test_a_table_that_errs_about_documents_in_one_sequence_is_caught(
    tmp_path: Path, layout: Callable[[], Layout], said: str
) -> None:
    table = layout()
    with pytest.raises(AssertionError, match=said):
        check_packing(Subject.make(table, tiny_config(table.model_type), tmp_path))


@pytest.mark.parametrize(
    ("name", "states", "said"),
    [
        pytest.param("llama", {"": HIDDEN}, "layer 0 keeps 0 values .* says 48 ", id="none is kept"),
        pytest.param("falcon_h1", {}, "layer 0 keeps 1,104 values .* says 0 ", id="none is told"),
        pytest.param(
            "lfm2", {"full_attention": CONV_CHANNELS}, "layer 0 keeps 144 values .* of kind 'conv'", id="kind"
        ),
        pytest.param("nemotron_h", {"linear_attention": dim(1104)}, "layer 0 keeps 648 values .* 1,104 ", id="fixed"),
    ],
)
def test_a_table_that_errs_about_what_layers_keep_of_a_sequence_is_caught(
    tmp_path: Path, name: str, states: dict[str, Dim], said: str
) -> None:
    table = replace(layout_of(name), states=states)
    with pytest.raises(AssertionError, match=said):
        check_states(Subject.make(table, tiny_config(name), tmp_path))


def test_a_table_that_errs_about_what_layers_put_out_is_caught(tmp_path: Path) -> None:
    table = replace(layout_of("falcon_h1"), layers_return_tuples=False)
    with pytest.raises((AssertionError, IndexError, RuntimeError, ValueError)):
        check_depth(Subject.make(table, tiny_config("falcon_h1"), tmp_path))


def test_a_table_that_errs_about_the_epsilon_is_told_so(tmp_path: Path) -> None:
    table = replace(layout_of("nemotron_h"), epsilon="rms_norm_eps")
    said = "has no 'rms_norm_eps', which the table names as the norms' epsilon"
    with pytest.raises(InvalidArchitectureError, match=said):
        check_masked_teacher(Subject.make(table, tiny_config("nemotron_h"), tmp_path))


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(lambda: replace(layout_of("llama"), norm="layer"), id="rms taken for layer norm"),
        pytest.param(lambda: replace(layout_of("gemma2"), norm="rms"), id="gain of one forgotten"),
        pytest.param(lambda: replace(layout_of("gemma2"), scales_embeddings=False), id="scaled embeddings forgotten"),
        pytest.param(lambda: no_buffers("glm4_moe"), id="a buffer counted as a parameter"),
        pytest.param(
            lambda: replace(layout_of("gemma4_text"), fixed=()),
            id="fixed heads that are offered",
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda: tied_to_nothing("glm4_moe"), id="a shared width that is not tied"),
        pytest.param(lambda: outputs_first("gpt_oss"), id="orientation of experts"),
        pytest.param(lambda: with_dims("mixtral", "gate.weight", dim(Axis.EXPERTS), EXPERTS), id="router"),
    ],
)
def test_a_wrong_constant_or_router_is_caught(tmp_path: Path, layout: Callable[[], Layout]) -> None:
    table = layout()
    with pytest.raises((AssertionError, CheckpointError, InvalidArchitectureError)):
        check_family(table, tiny_config(table.model_type), tmp_path)
