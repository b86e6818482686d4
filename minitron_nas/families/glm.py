"""GLM 4 and GLM Edge: a bias on queries, keys and values; gate and up projection in one matrix."""

from minitron_nas.architecture.layout import HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Layout, norm, row

LAYOUT = Layout(
    model_type="glm",
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
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.mlp.gate_up_proj.weight", NEURONS + NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.down_proj.weight", HIDDEN, NEURONS),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    defaults={"head_dim": 128, "attention_bias": True},
)
