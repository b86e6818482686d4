"""Bamba: Granite 4.0 H's Mamba 2 mixers, beside layers with attention."""

from minitron_nas.architecture.kinds import Indexed
from minitron_nas.architecture.layout import (
    HIDDEN,
    KEYS,
    MAMBA_CHANNELS,
    NEURONS,
    QUERIES,
    VOCAB,
    Layout,
    norm,
    only,
    row,
)
from minitron_nas.families.granitemoehybrid import MIXER, MIXER_KEYS, MIXER_STATES

LAYOUT = Layout(
    model_type="bamba",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        *only(
            "linear_attention",
            *MIXER,
            norm("model.layers.{layer}.mamba.norm.weight", MAMBA_CHANNELS),
            row("model.layers.{layer}.mamba.out_proj.weight", HIDDEN, MAMBA_CHANNELS),
            row("model.layers.{layer}.mamba.out_proj.bias", HIDDEN, when="mamba_proj_bias"),
        ),
        *only(
            "full_attention",
            row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
            row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES, when="attention_bias"),
            row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
            row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
            row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
            row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
            row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
            row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
        ),
        norm("model.layers.{layer}.pre_ff_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.feed_forward.gate_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.feed_forward.gate_proj.bias", NEURONS, when="mlp_bias"),
        row("model.layers.{layer}.feed_forward.up_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.feed_forward.up_proj.bias", NEURONS, when="mlp_bias"),
        row("model.layers.{layer}.feed_forward.down_proj.weight", HIDDEN, NEURONS),
        row("model.layers.{layer}.feed_forward.down_proj.bias", HIDDEN, when="mlp_bias"),
        norm("model.final_layernorm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    config_keys=MIXER_KEYS,
    states={"linear_attention": MIXER_STATES},
    kinds=Indexed("attn_layer_indices", listed="full_attention", others="linear_attention"),
    hidden_divides_mixer=True,
    layers_return_tuples=True,
    logits_tolerance=1e-4,
)
