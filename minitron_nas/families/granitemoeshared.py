"""Granite 3 with experts, and beside them an FFN that every token is sent to, if the config gives it neurons."""

from minitron_nas.architecture.kinds import AllOrNone
from minitron_nas.architecture.layout import (
    EXPERT_NEURONS,
    EXPERTS,
    HIDDEN,
    KEYS,
    QUERIES,
    SHARED_NEURONS,
    VOCAB,
    Layout,
    norm,
    only,
    row,
)
from minitron_nas.families.granitemoe import STACKS

LAYOUT = Layout(
    model_type="granitemoeshared",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES, when="attention_bias"),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
        row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        *only(
            ("experts", "shared"),
            row("model.layers.{layer}.block_sparse_moe.router.layer.weight", EXPERTS, HIDDEN),
            row(
                "model.layers.{layer}.block_sparse_moe.input_linear.weight[{expert}]",
                EXPERT_NEURONS + EXPERT_NEURONS,
                HIDDEN,
            ),
            row("model.layers.{layer}.block_sparse_moe.output_linear.weight[{expert}]", HIDDEN, EXPERT_NEURONS),
        ),
        *only(
            "shared",
            row("model.layers.{layer}.shared_mlp.input_linear.weight", SHARED_NEURONS + SHARED_NEURONS, HIDDEN),
            row("model.layers.{layer}.shared_mlp.output_linear.weight", HIDDEN, SHARED_NEURONS),
        ),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    kinds=AllOrNone("shared_intermediate_size", having="shared", lacking="experts"),
    config_keys={
        "num_experts": ("num_local_experts",),
        "moe_intermediate_size": ("intermediate_size",),
        "shared_expert_intermediate_size": ("shared_intermediate_size",),
    },
    defaults={"num_experts": 8, "num_experts_per_tok": 2},
    renamed=STACKS,
)
