"""Granite 4.0 H: layers have a Mamba 2 mixer or attention, an FFN, and Granite's multipliers.

Either all layers have experts beside their FFN, or none has.
"""

from minitron_nas.architecture.kinds import AllOrNone, Listed, Paired
from minitron_nas.architecture.layout import (
    EXPERT_NEURONS,
    EXPERTS,
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
from minitron_nas.families.granitemoe import STACKS

STATES = dim(2, Axis.MAMBA_GROUPS, "mamba_d_state")
"""What each group writes into its states, then what it reads from them."""
CONVOLVED = MAMBA_CHANNELS + STATES
MIXED = MAMBA_CHANNELS + MAMBA_CHANNELS + STATES + MAMBA_HEADS
MIXER = (
    row("model.layers.{layer}.mamba.in_proj.weight", MIXED, HIDDEN),
    row("model.layers.{layer}.mamba.in_proj.bias", MIXED, when="mamba_proj_bias"),
    row("model.layers.{layer}.mamba.conv1d.weight", CONVOLVED, dim(), dim("mamba_d_conv")),
    row("model.layers.{layer}.mamba.conv1d.bias", CONVOLVED, when="mamba_conv_bias"),
    row("model.layers.{layer}.mamba.dt_bias", MAMBA_HEADS),
    row("model.layers.{layer}.mamba.A_log", MAMBA_HEADS),
    row("model.layers.{layer}.mamba.D", MAMBA_HEADS),
)
"""A mixer up to its norm; Falcon-H1's, too."""
MIXER_STATES = MAMBA_CHANNELS * "mamba_d_state" + CONVOLVED * "mamba_d_conv"
MIXER_KEYS = {
    "mamba_num_heads": ("mamba_n_heads",),
    "mamba_head_dim": ("mamba_d_head",),
    "mamba_num_groups": ("mamba_n_groups",),
}

MAMBA = ("linear_attention", "linear_attention experts")
ATTENTION = ("full_attention", "full_attention experts")

LAYOUT = Layout(
    model_type="granitemoehybrid",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        *only(
            MAMBA,
            *MIXER,
            norm("model.layers.{layer}.mamba.norm.weight", MAMBA_CHANNELS),
            row("model.layers.{layer}.mamba.out_proj.weight", HIDDEN, MAMBA_CHANNELS),
            row("model.layers.{layer}.mamba.out_proj.bias", HIDDEN, when="mamba_proj_bias"),
        ),
        *only(
            ATTENTION,
            row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
            row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES, when="attention_bias"),
            row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
            row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
            row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
            row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
            row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
            row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
        ),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.shared_mlp.input_linear.weight", NEURONS + NEURONS, HIDDEN),
        row("model.layers.{layer}.shared_mlp.output_linear.weight", HIDDEN, NEURONS),
        *only(
            (MAMBA[1], ATTENTION[1]),
            row("model.layers.{layer}.block_sparse_moe.router.layer.weight", EXPERTS, HIDDEN),
            row(
                "model.layers.{layer}.block_sparse_moe.input_linear.weight[{expert}]",
                EXPERT_NEURONS + EXPERT_NEURONS,
                HIDDEN,
            ),
            row("model.layers.{layer}.block_sparse_moe.output_linear.weight[{expert}]", HIDDEN, EXPERT_NEURONS),
        ),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    config_keys={
        **MIXER_KEYS,
        "intermediate_size": ("shared_intermediate_size",),
        "num_experts": ("num_local_experts",),
        "moe_intermediate_size": ("intermediate_size",),
    },
    renamed=STACKS,
    states=dict.fromkeys(MAMBA, MIXER_STATES),
    kinds=Paired(Listed("layer_types"), AllOrNone("num_local_experts", having="experts")),
    hidden_divides_mixer=True,
    logits_tolerance=1e-4,
)
