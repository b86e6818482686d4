"""MiniMax M2: Mixtral's experts behind a router with a buffer, and norms over the queries and keys of all heads."""

from minitron_nas.architecture.layout import EXPERTS, HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Layout, buffer, norm, row

LAYOUT = Layout(
    model_type="minimax_m2",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        norm("model.layers.{layer}.self_attn.q_norm.weight", QUERIES),
        norm("model.layers.{layer}.self_attn.k_norm.weight", KEYS),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.block_sparse_moe.gate.weight", EXPERTS, HIDDEN),
        buffer("model.layers.{layer}.block_sparse_moe.e_score_correction_bias", EXPERTS),
        row("model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight", HIDDEN, NEURONS),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    config_keys={"num_experts": ("num_local_experts", "num_experts")},
    defaults={"num_experts": 256, "num_experts_per_tok": 8, "head_dim": 128},
    renamed=((".block_sparse_moe", ".mlp"),),
)
