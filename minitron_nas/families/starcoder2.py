"""StarCoder2: LayerNorm, an ungated FFN, and a bias on every projection."""

from minitron_nas.architecture.layout import HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Layout, norm, row

LAYOUT = Layout(
    model_type="starcoder2",
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
        row("model.layers.{layer}.mlp.c_fc.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.c_fc.bias", NEURONS, when="mlp_bias"),
        row("model.layers.{layer}.mlp.c_proj.weight", HIDDEN, NEURONS),
        row("model.layers.{layer}.mlp.c_proj.bias", HIDDEN, when="mlp_bias"),
        norm("model.norm.weight", HIDDEN),
        row("model.norm.bias", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    norm="layer",
    config_keys={"attention_bias": ("use_bias",), "mlp_bias": ("use_bias",)},
    defaults={"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
)
