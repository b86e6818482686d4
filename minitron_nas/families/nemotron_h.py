"""Nemotron-H, Nemotron Nano 2, dense: every layer is a Mamba 2 mixer, attention, or an FFN with squared ReLU."""

from minitron_nas.architecture.kinds import Listed
from minitron_nas.architecture.layout import (
    HIDDEN,
    KEYS,
    MAMBA_CHANNELS,
    MAMBA_HEADS,
    NEURONS,
    QUERIES,
    VOCAB,
    Axis,
    Layout,
    dim,
    norm,
    only,
    row,
)

STATES = dim(2, Axis.MAMBA_GROUPS, "ssm_state_size")
"""What each group writes into its states, then what it reads from them."""
CONVOLVED = MAMBA_CHANNELS + STATES
MIXED = MAMBA_CHANNELS + MAMBA_CHANNELS + STATES + MAMBA_HEADS

LAYOUT = Layout(
    model_type="nemotron_h",
    rows=(
        row("backbone.embeddings.weight", VOCAB, HIDDEN),
        norm("backbone.layers.{layer}.norm.weight", HIDDEN),
        *only(
            "linear_attention",
            row("backbone.layers.{layer}.mixer.in_proj.weight", MIXED, HIDDEN),
            row("backbone.layers.{layer}.mixer.in_proj.bias", MIXED, when="use_bias"),
            row("backbone.layers.{layer}.mixer.conv1d.weight", CONVOLVED, dim(), dim("conv_kernel")),
            row("backbone.layers.{layer}.mixer.conv1d.bias", CONVOLVED, when="use_conv_bias"),
            row("backbone.layers.{layer}.mixer.dt_bias", MAMBA_HEADS),
            row("backbone.layers.{layer}.mixer.A_log", MAMBA_HEADS),
            row("backbone.layers.{layer}.mixer.D", MAMBA_HEADS),
            norm("backbone.layers.{layer}.mixer.norm.weight", MAMBA_CHANNELS),
            row("backbone.layers.{layer}.mixer.out_proj.weight", HIDDEN, MAMBA_CHANNELS),
            row("backbone.layers.{layer}.mixer.out_proj.bias", HIDDEN, when="use_bias"),
        ),
        *only(
            "full_attention",
            row("backbone.layers.{layer}.mixer.q_proj.weight", QUERIES, HIDDEN),
            row("backbone.layers.{layer}.mixer.k_proj.weight", KEYS, HIDDEN),
            row("backbone.layers.{layer}.mixer.v_proj.weight", KEYS, HIDDEN),
            row("backbone.layers.{layer}.mixer.o_proj.weight", HIDDEN, QUERIES),
        ),
        *only(
            "mlp",
            row("backbone.layers.{layer}.mixer.up_proj.weight", NEURONS, HIDDEN),
            row("backbone.layers.{layer}.mixer.up_proj.bias", NEURONS, when="mlp_bias"),
            row("backbone.layers.{layer}.mixer.down_proj.weight", HIDDEN, NEURONS),
            row("backbone.layers.{layer}.mixer.down_proj.bias", HIDDEN, when="mlp_bias"),
        ),
        norm("backbone.norm_f.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    config_keys={"mamba_num_groups": ("n_groups",)},
    requires={"tie_word_embeddings": (False,), "num_nextn_predict_layers": (0,)},
    renamed=(("backbone.", "model."),),
    states={"linear_attention": MAMBA_CHANNELS * "ssm_state_size" + CONVOLVED * "conv_kernel"},
    kinds=Listed("layers_block_type"),
    epsilon="layer_norm_epsilon",
    logits_tolerance=1e-4,
)
