"""Qwen3-Next: three of four layers are gated delta nets, their projections fused; a shared expert has its own gate."""

from minitron_nas.architecture.kinds import Listed
from minitron_nas.architecture.layout import (
    EXPERT_NEURONS,
    EXPERTS,
    HEAD_DIM,
    HIDDEN,
    KEYS,
    QUERIES,
    SHARED_NEURONS,
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
BY_KEY_HEAD = DELTA_KEYS + DELTA_KEYS + DELTA_VALUES + DELTA_VALUES
"""Query, key, values and gates of the first key head, then those of the second, and so on; all of it stays."""

LAYOUT = Layout(
    model_type="qwen3_next",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        *only(
            "linear_attention",
            row("model.layers.{layer}.linear_attn.in_proj_qkvz.weight", BY_KEY_HEAD, HIDDEN),
            row("model.layers.{layer}.linear_attn.in_proj_ba.weight", DELTA_HEADS + DELTA_HEADS, HIDDEN),
            row("model.layers.{layer}.linear_attn.conv1d.weight", CONVOLVED, dim(), dim("linear_conv_kernel_dim")),
            row("model.layers.{layer}.linear_attn.dt_bias", DELTA_HEADS),
            row("model.layers.{layer}.linear_attn.A_log", DELTA_HEADS),
            norm("model.layers.{layer}.linear_attn.norm.weight", dim("linear_value_head_dim")),
            row("model.layers.{layer}.linear_attn.out_proj.weight", HIDDEN, DELTA_VALUES),
        ),
        *only(
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
        ),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN),
        row("model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight", EXPERT_NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", EXPERT_NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight", HIDDEN, EXPERT_NEURONS),
        row("model.layers.{layer}.mlp.shared_expert.gate_proj.weight", SHARED_NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.shared_expert.up_proj.weight", SHARED_NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.shared_expert.down_proj.weight", HIDDEN, SHARED_NEURONS),
        row("model.layers.{layer}.mlp.shared_expert_gate.weight", dim(), HIDDEN),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    norm="rms_plus_one",
    requires={"mlp_only_layers": ([], None), "decoder_sparse_step": (1,)},
    ignored_modules=("mtp.",),
    kinds=Listed("layer_types"),
    hands_on_state=True,
    logits_tolerance=1e-3,
)
