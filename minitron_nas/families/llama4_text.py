"""Llama 4: layers with experts, which read what the router weighs, and a shared one as wide; others may be dense."""

from minitron_nas.architecture.kinds import Indexed
from minitron_nas.architecture.layout import (
    EXPERT_NEURONS,
    EXPERTS,
    HIDDEN,
    KEYS,
    NEURONS,
    QUERIES,
    SHARED_NEURONS,
    VOCAB,
    Layout,
    norm,
    only,
    row,
)

GATES_AND_UPS = EXPERT_NEURONS + EXPERT_NEURONS

LAYOUT = Layout(
    model_type="llama4_text",
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
            "dense",
            row("model.layers.{layer}.feed_forward.gate_proj.weight", NEURONS, HIDDEN),
            row("model.layers.{layer}.feed_forward.up_proj.weight", NEURONS, HIDDEN),
            row("model.layers.{layer}.feed_forward.down_proj.weight", HIDDEN, NEURONS),
        ),
        *only(
            "experts",
            row("model.layers.{layer}.feed_forward.router.weight", EXPERTS, HIDDEN),
            row(
                "model.layers.{layer}.feed_forward.experts.gate_up_proj[{expert}]",
                HIDDEN,
                GATES_AND_UPS,
                inputs_first=True,
            ),
            row(
                "model.layers.{layer}.feed_forward.experts.down_proj[{expert}]",
                EXPERT_NEURONS,
                HIDDEN,
                inputs_first=True,
            ),
            row("model.layers.{layer}.feed_forward.shared_expert.gate_proj.weight", SHARED_NEURONS, HIDDEN),
            row("model.layers.{layer}.feed_forward.shared_expert.up_proj.weight", SHARED_NEURONS, HIDDEN),
            row("model.layers.{layer}.feed_forward.shared_expert.down_proj.weight", HIDDEN, SHARED_NEURONS),
        ),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    kinds=Indexed("moe_layers", listed="experts", others="dense"),
    config_keys={
        "intermediate_size": ("intermediate_size_mlp",),
        "moe_intermediate_size": ("intermediate_size",),
        "num_experts": ("num_local_experts",),
        "num_shared_experts": (),
        "shared_expert_intermediate_size": (),
    },
    defaults={"num_shared_experts": 1, "num_experts_per_tok": 1},
    logits_tolerance=1e-3,
)
