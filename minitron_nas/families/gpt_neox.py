"""GPT-NeoX and Pythia: queries, keys and values interleaved head by head; attention and FFN in parallel."""

from minitron_nas.architecture.layout import HEADWISE_QKV, HIDDEN, NEURONS, QUERIES, VOCAB, Layout, norm, row

LAYOUT = Layout(
    model_type="gpt_neox",
    rows=(
        row("gpt_neox.embed_in.weight", VOCAB, HIDDEN),
        norm("gpt_neox.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("gpt_neox.layers.{layer}.input_layernorm.bias", HIDDEN),
        row("gpt_neox.layers.{layer}.attention.query_key_value.weight", HEADWISE_QKV, HIDDEN),
        row("gpt_neox.layers.{layer}.attention.query_key_value.bias", HEADWISE_QKV, when="attention_bias"),
        row("gpt_neox.layers.{layer}.attention.dense.weight", HIDDEN, QUERIES),
        row("gpt_neox.layers.{layer}.attention.dense.bias", HIDDEN, when="attention_bias"),
        norm("gpt_neox.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        row("gpt_neox.layers.{layer}.post_attention_layernorm.bias", HIDDEN),
        row("gpt_neox.layers.{layer}.mlp.dense_h_to_4h.weight", NEURONS, HIDDEN),
        row("gpt_neox.layers.{layer}.mlp.dense_h_to_4h.bias", NEURONS),
        row("gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight", HIDDEN, NEURONS),
        row("gpt_neox.layers.{layer}.mlp.dense_4h_to_h.bias", HIDDEN),
        norm("gpt_neox.final_layer_norm.weight", HIDDEN),
        row("gpt_neox.final_layer_norm.bias", HIDDEN),
        row("embed_out.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    norm="layer",
    head_dim_is_derived=True,
    config_keys={"num_key_value_heads": (), "head_dim": ()},
    defaults={"attention_bias": True},
    renamed=(("embed_out", "lm_head"),),
    aliases=(("embed_out.", "lm_head."),),
    ignored=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
)
