"""GPT-2: matrices stored (inputs, outputs), learned positions, a bias on every projection."""

from minitron_nas.architecture.layout import HIDDEN, KEYS, NEURONS, POSITIONS, QUERIES, VOCAB, Layout, norm, row

LAYOUT = Layout(
    model_type="gpt2",
    rows=(
        row("transformer.wte.weight", VOCAB, HIDDEN),
        row("transformer.wpe.weight", POSITIONS, HIDDEN),
        norm("transformer.h.{layer}.ln_1.weight", HIDDEN),
        row("transformer.h.{layer}.ln_1.bias", HIDDEN),
        row("transformer.h.{layer}.attn.c_attn.weight", HIDDEN, QUERIES + KEYS + KEYS),
        row("transformer.h.{layer}.attn.c_attn.bias", QUERIES + KEYS + KEYS),
        row("transformer.h.{layer}.attn.c_proj.weight", QUERIES, HIDDEN),
        row("transformer.h.{layer}.attn.c_proj.bias", HIDDEN),
        norm("transformer.h.{layer}.ln_2.weight", HIDDEN),
        row("transformer.h.{layer}.ln_2.bias", HIDDEN),
        row("transformer.h.{layer}.mlp.c_fc.weight", HIDDEN, NEURONS),
        row("transformer.h.{layer}.mlp.c_fc.bias", NEURONS),
        row("transformer.h.{layer}.mlp.c_proj.weight", NEURONS, HIDDEN),
        row("transformer.h.{layer}.mlp.c_proj.bias", HIDDEN),
        norm("transformer.ln_f.weight", HIDDEN),
        row("transformer.ln_f.bias", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    norm="layer",
    conv1d=True,
    head_dim_is_derived=True,
    config_keys={
        "num_hidden_layers": ("n_layer",),
        "hidden_size": ("n_embd",),
        "intermediate_size": ("n_inner",),
        "num_attention_heads": ("n_head",),
        "num_key_value_heads": (),
        "head_dim": (),
        "max_position_embeddings": ("n_positions",),
    },
    defaults={"max_position_embeddings": 1024, "tie_word_embeddings": True},
    ffn_ratio=4,
    requires={"add_cross_attention": (False,), "scale_attn_by_inverse_layer_idx": (False,)},
    aliases=(("transformer.", ""),),
    ignored=(".attn.bias", ".attn.masked_bias"),
)
