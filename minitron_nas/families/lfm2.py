"""LFM2: most layers have a short convolution between hidden channels and gates, the others attention."""

from minitron_nas.architecture.kinds import Listed
from minitron_nas.architecture.layout import (
    CONV_CHANNELS,
    HEAD_DIM,
    HIDDEN,
    KEYS,
    NEURONS,
    QUERIES,
    VOCAB,
    Layout,
    dim,
    norm,
    only,
    row,
)
from minitron_nas.architecture.widths import AdjustedWidth

GATED_CHANNELS = CONV_CHANNELS + CONV_CHANNELS + CONV_CHANNELS
"""What gates the convolution's inputs, what gates its outputs, and the inputs."""

CONVOLUTION = (
    row("model.layers.{layer}.conv.in_proj.weight", GATED_CHANNELS, HIDDEN),
    row("model.layers.{layer}.conv.in_proj.bias", GATED_CHANNELS, when="conv_bias"),
    row("model.layers.{layer}.conv.conv.weight", CONV_CHANNELS, dim(), dim("conv_L_cache")),
    row("model.layers.{layer}.conv.conv.bias", CONV_CHANNELS, when="conv_bias"),
    row("model.layers.{layer}.conv.out_proj.weight", HIDDEN, CONV_CHANNELS),
    row("model.layers.{layer}.conv.out_proj.bias", HIDDEN, when="conv_bias"),
)
ATTENTION = (
    row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
    row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
    row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
    norm("model.layers.{layer}.self_attn.q_layernorm.weight", HEAD_DIM),
    norm("model.layers.{layer}.self_attn.k_layernorm.weight", HEAD_DIM),
    row("model.layers.{layer}.self_attn.out_proj.weight", HIDDEN, QUERIES),
)
FFN = (
    row("model.layers.{layer}.feed_forward.w1.weight", NEURONS, HIDDEN),
    row("model.layers.{layer}.feed_forward.w3.weight", NEURONS, HIDDEN),
    row("model.layers.{layer}.feed_forward.w2.weight", HIDDEN, NEURONS),
)

LAYOUT = Layout(
    model_type="lfm2",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.operator_norm.weight", HIDDEN),
        *only("conv", *CONVOLUTION),
        *only("full_attention", *ATTENTION),
        norm("model.layers.{layer}.ffn_norm.weight", HIDDEN),
        *FFN,
        norm("model.embedding_norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    config_keys={
        "hidden_size": ("hidden_size", "block_dim", "conv_dim", "conv_dim_out"),
        "intermediate_size": ("intermediate_size", "block_ff_dim"),
        "num_attention_heads": ("num_attention_heads", "num_heads"),
    },
    ffn_width=AdjustedWidth("block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of"),
    defaults={"tie_word_embeddings": True},
    states={"conv": CONV_CHANNELS * "conv_L_cache"},
    kinds=Listed("layer_types"),
    epsilon="norm_eps",
)
