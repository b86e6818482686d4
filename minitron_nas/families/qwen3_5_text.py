"""Qwen 3.5 to 3.8, dense: three of four layers are gated delta nets; the others' queries come with gates."""

from minitron_nas.architecture.kinds import Listed
from minitron_nas.architecture.layout import (
    HEAD_DIM,
    HIDDEN,
    KEYS,
    NEURONS,
    QUERIES,
    VOCAB,
    Axis,
    Layout,
    dim,
    norm,
    only,
    row,
)

GATED_QUERIES = dim(Axis.KV_GROUPS, Axis.GROUP_HEADS, 2, Axis.HEAD_DIM)
"""The queries of the first head, then the gates of its outputs, and so on."""
DELTA_HEADS = dim("linear_num_value_heads")
DELTA_KEYS = dim("linear_num_key_heads", "linear_key_head_dim")
DELTA_VALUES = dim("linear_num_value_heads", "linear_value_head_dim")
CONVOLVED = DELTA_KEYS + DELTA_KEYS + DELTA_VALUES
DELTA_STATES = DELTA_VALUES * "linear_key_head_dim" + CONVOLVED * "linear_conv_kernel_dim"
GATED_DELTA_NET = only(
    "linear_attention",
    row("model.layers.{layer}.linear_attn.in_proj_qkv.weight", CONVOLVED, HIDDEN),
    row("model.layers.{layer}.linear_attn.in_proj_z.weight", DELTA_VALUES, HIDDEN),
    row("model.layers.{layer}.linear_attn.in_proj_b.weight", DELTA_HEADS, HIDDEN),
    row("model.layers.{layer}.linear_attn.in_proj_a.weight", DELTA_HEADS, HIDDEN),
    row("model.layers.{layer}.linear_attn.conv1d.weight", CONVOLVED, dim(), dim("linear_conv_kernel_dim")),
    row("model.layers.{layer}.linear_attn.dt_bias", DELTA_HEADS),
    row("model.layers.{layer}.linear_attn.A_log", DELTA_HEADS),
    norm("model.layers.{layer}.linear_attn.norm.weight", dim("linear_value_head_dim")),
    row("model.layers.{layer}.linear_attn.out_proj.weight", HIDDEN, DELTA_VALUES),
)
GATED_ATTENTION = only(
    "full_attention",
    row("model.layers.{layer}.self_attn.q_proj.weight", GATED_QUERIES, HIDDEN),
    row("model.layers.{layer}.self_attn.q_proj.bias", GATED_QUERIES, when="attention_bias"),
    row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
    row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
    row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
    row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
    norm("model.layers.{layer}.self_attn.q_norm.weight", HEAD_DIM),
    norm("model.layers.{layer}.self_attn.k_norm.weight", HEAD_DIM),
    row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
    row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
)
"""The layers that see everything, in all of the Qwens with delta nets."""

LAYOUT = Layout(
    model_type="qwen3_5_text",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        *GATED_DELTA_NET,
        *GATED_ATTENTION,
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.mlp.gate_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.up_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.down_proj.weight", HIDDEN, NEURONS),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    norm="rms_plus_one",
    states={"linear_attention": DELTA_STATES},
    kinds=Listed("layer_types"),
    logits_tolerance=1e-3,
)
