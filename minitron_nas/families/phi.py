"""Phi 1, 1.5 and 2: attention and FFN read one LayerNorm; a bias everywhere, on the output head too."""

from minitron_nas.architecture.layout import HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Layout, norm, row

LAYOUT = Layout(
    model_type="phi",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.input_layernorm.bias", HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.bias", KEYS),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.bias", KEYS),
        row("model.layers.{layer}.self_attn.dense.weight", HIDDEN, QUERIES),
        row("model.layers.{layer}.self_attn.dense.bias", HIDDEN),
        row("model.layers.{layer}.mlp.fc1.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.fc1.bias", NEURONS),
        row("model.layers.{layer}.mlp.fc2.weight", HIDDEN, NEURONS),
        row("model.layers.{layer}.mlp.fc2.bias", HIDDEN),
        norm("model.final_layernorm.weight", HIDDEN),
        row("model.final_layernorm.bias", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
        row("lm_head.bias", VOCAB),
    ),
    norm="layer",
    requires={"qk_layernorm": (False,)},
)
