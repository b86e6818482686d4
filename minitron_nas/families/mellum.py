"""Mellum 2: Qwen 3's experts, and an FFN in layers that the config names; layers that see a window."""

from minitron_nas.architecture.kinds import Listed
from minitron_nas.architecture.layout import (
    EXPERT_NEURONS,
    EXPERTS,
    HEAD_DIM,
    HIDDEN,
    KEYS,
    QUERIES,
    VOCAB,
    Layout,
    norm,
    only,
    row,
)
from minitron_nas.families.glm4_moe import DENSE_FFN

LAYOUT = Layout(
    model_type="mellum",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES, when="attention_bias"),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
        norm("model.layers.{layer}.self_attn.q_norm.weight", HEAD_DIM),
        norm("model.layers.{layer}.self_attn.k_norm.weight", HEAD_DIM),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
        row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        *only("dense", *DENSE_FFN),
        *only(
            "sparse",
            row("model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN),
            row("model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight", EXPERT_NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", EXPERT_NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight", HIDDEN, EXPERT_NEURONS),
        ),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    kinds=Listed("mlp_layer_types"),
    config_keys={"num_experts": ("num_experts", "num_local_experts")},
    defaults={"head_dim": 128, "num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 896},
    ignored_modules=("mtp.",),
)
