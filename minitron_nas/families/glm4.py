"""GLM 4 of April 2025 (0414) and Z1: GLM 4's tensors, and norms after attention and FFN too."""

from minitron_nas.architecture.layout import HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Layout, norm, row

LAYOUT = Layout(
    model_type="glm4",
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
        norm("model.layers.{layer}.post_self_attn_layernorm.weight", HIDDEN, on_branch=True),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.mlp.gate_up_proj.weight", NEURONS + NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.down_proj.weight", HIDDEN, NEURONS),
        norm("model.layers.{layer}.post_mlp_layernorm.weight", HIDDEN, on_branch=True),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    defaults={"head_dim": 128, "attention_bias": True},
)
