"""Qwen 3 with experts: Qwen 3's attention, and an FFN of many narrow experts in every layer."""

from minitron_nas.architecture.layout import (
    EXPERT_NEURONS,
    EXPERTS,
    EXPERTS_IN_STACKS,
    HEAD_DIM,
    HIDDEN,
    KEYS,
    QUERIES,
    VOCAB,
    Layout,
    norm,
    row,
)

LAYOUT = Layout(
    model_type="qwen3_moe",
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
        row("model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN),
        row("model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight", EXPERT_NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", EXPERT_NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight", HIDDEN, EXPERT_NEURONS),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    stacked=EXPERTS_IN_STACKS,
    config_keys={"num_experts": ("num_experts", "num_local_experts")},
    defaults={"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    requires={"mlp_only_layers": ([], None), "decoder_sparse_step": (1,)},
)
