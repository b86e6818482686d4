"""Falcon-H1: in every layer attention and a Mamba 2 mixer read one norm, side by side; multipliers everywhere."""

from minitron_nas.architecture.layout import (
    HIDDEN,
    KEYS,
    MAMBA_CHANNELS,
    NEURONS,
    QUERIES,
    VOCAB,
    Layout,
    norm,
    row,
)
from minitron_nas.families.granitemoehybrid import MIXER, MIXER_KEYS, MIXER_STATES

LAYOUT = Layout(
    model_type="falcon_h1",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        *MIXER,
        norm("model.layers.{layer}.mamba.norm.weight", MAMBA_CHANNELS, when="mamba_rms_norm"),
        row("model.layers.{layer}.mamba.out_proj.weight", HIDDEN, MAMBA_CHANNELS),
        row("model.layers.{layer}.mamba.out_proj.bias", HIDDEN, when="projectors_bias"),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES, when="attention_bias"),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
        row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
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
    mixer_width="mamba_d_ssm",
    states={"": MIXER_STATES},
    layers_return_tuples=True,
    logits_tolerance=1e-3,
)
