"""Phi 3.5 MoE: Mixtral's experts, LayerNorm, and a bias where the config says so."""

from minitron_nas.architecture.layout import EXPERTS, HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Layout, norm, row

LAYOUT = Layout(
    model_type="phimoe",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.input_layernorm.bias", HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES, when="attention_bias"),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
        row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.post_attention_layernorm.bias", HIDDEN),
        row("model.layers.{layer}.block_sparse_moe.gate.weight", EXPERTS, HIDDEN),
        row("model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight", HIDDEN, NEURONS),
        norm("model.norm.weight", HIDDEN),
        row("model.norm.bias", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
        row("lm_head.bias", VOCAB, when="lm_head_bias"),
    ),
    norm="layer",
    config_keys={"num_experts": ("num_local_experts",)},
    defaults={"num_experts": 16, "num_experts_per_tok": 2},
    requires={"num_experts_per_tok": (2,)},
    reasons={"num_experts_per_tok": "its router picks two, whatever the config says"},
    renamed=((".block_sparse_moe.gate", ".mlp.router"), (".block_sparse_moe", ".mlp")),
)
