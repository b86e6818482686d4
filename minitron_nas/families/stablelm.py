"""StableLM 2 and StableLM 3B: LayerNorm; a bias on queries, keys and values if `use_qkv_bias` says so."""

from minitron_nas.architecture.layout import HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Layout, norm, row

LAYOUT = Layout(
    model_type="stablelm",
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
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.post_attention_layernorm.bias", HIDDEN),
        row("model.layers.{layer}.mlp.gate_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.up_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.down_proj.weight", HIDDEN, NEURONS),
        norm("model.norm.weight", HIDDEN),
        row("model.norm.bias", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    norm="layer",
    head_dim_is_derived=True,
    config_keys={"attention_bias": ("use_qkv_bias",)},
    requires={"qk_layernorm": (False,), "use_parallel_residual": (False,)},
)
