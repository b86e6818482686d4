"""Nemotron-H, Nemotron Nano 2, Nemotron 3: every layer is a Mamba 2 mixer, attention, or an FFN with squared ReLU.

Where an FFN has experts, nothing gates their neurons, and a shared one of a width of its own stands beside them. Those
of Nemotron 3 Super and Ultra read and write latents of a fixed size (`moe_latent_size`).
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
    SHARED_NEURONS,
    VOCAB,
    Axis,
    Layout,
    buffer,
    dim,
    norm,
    only,
    row,
)

STATES = dim(2, Axis.MAMBA_GROUPS, "ssm_state_size")
"""What each group writes into its states, then what it reads from them."""
CONVOLVED = MAMBA_CHANNELS + STATES
MIXED = MAMBA_CHANNELS + MAMBA_CHANNELS + STATES + MAMBA_HEADS
LATENTS = dim("moe_latent_size")
MAMBA, ATTENTION, DENSE, SPARSE = (
    (kind, f"{kind} latent") for kind in ("linear_attention", "full_attention", "mlp", "moe")
)

LAYOUT = Layout(
    model_type="nemotron_h",
    rows=(
        row("backbone.embeddings.weight", VOCAB, HIDDEN),
        norm("backbone.layers.{layer}.norm.weight", HIDDEN),
        *only(
            MAMBA,
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
            ATTENTION,
            row("backbone.layers.{layer}.mixer.q_proj.weight", QUERIES, HIDDEN),
            row("backbone.layers.{layer}.mixer.k_proj.weight", KEYS, HIDDEN),
            row("backbone.layers.{layer}.mixer.v_proj.weight", KEYS, HIDDEN),
            row("backbone.layers.{layer}.mixer.o_proj.weight", HIDDEN, QUERIES),
        ),
        *only(
            DENSE,
            row("backbone.layers.{layer}.mixer.up_proj.weight", NEURONS, HIDDEN),
            row("backbone.layers.{layer}.mixer.up_proj.bias", NEURONS, when="mlp_bias"),
            row("backbone.layers.{layer}.mixer.down_proj.weight", HIDDEN, NEURONS),
            row("backbone.layers.{layer}.mixer.down_proj.bias", HIDDEN, when="mlp_bias"),
        ),
        *only(
            SPARSE,
            row("backbone.layers.{layer}.mixer.gate.weight", EXPERTS, HIDDEN),
            buffer("backbone.layers.{layer}.mixer.gate.e_score_correction_bias", EXPERTS),
            row("backbone.layers.{layer}.mixer.shared_experts.up_proj.weight", SHARED_NEURONS, HIDDEN),
            row("backbone.layers.{layer}.mixer.shared_experts.up_proj.bias", SHARED_NEURONS, when="mlp_bias"),
            row("backbone.layers.{layer}.mixer.shared_experts.down_proj.weight", HIDDEN, SHARED_NEURONS),
            row("backbone.layers.{layer}.mixer.shared_experts.down_proj.bias", HIDDEN, when="mlp_bias"),
        ),
        *only(
            SPARSE[0],
            row("backbone.layers.{layer}.mixer.experts.{expert}.up_proj.weight", EXPERT_NEURONS, HIDDEN),
            row("backbone.layers.{layer}.mixer.experts.{expert}.down_proj.weight", HIDDEN, EXPERT_NEURONS),
        ),
        *only(
            SPARSE[1],
            row("backbone.layers.{layer}.mixer.fc1_latent_proj.weight", LATENTS, HIDDEN),
            row("backbone.layers.{layer}.mixer.fc1_latent_proj.bias", LATENTS, when="mlp_bias"),
            row("backbone.layers.{layer}.mixer.experts.{expert}.up_proj.weight", EXPERT_NEURONS, LATENTS),
            row("backbone.layers.{layer}.mixer.experts.{expert}.down_proj.weight", LATENTS, EXPERT_NEURONS),
            row("backbone.layers.{layer}.mixer.fc2_latent_proj.weight", HIDDEN, LATENTS),
            row("backbone.layers.{layer}.mixer.fc2_latent_proj.bias", HIDDEN, when="mlp_bias"),
        ),
        norm("backbone.norm_f.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    config_keys={
        "mamba_num_groups": ("n_groups",),
        "num_experts": ("n_routed_experts", "num_local_experts"),
        "num_expert_groups": ("n_group",),
        "num_groups_per_tok": ("topk_group",),
        "num_shared_experts": (),
        "shared_expert_intermediate_size": ("moe_shared_expert_intermediate_size",),
    },
    requires={"tie_word_embeddings": (False,)},
    ignored_modules=("mtp.",),
    renamed=(("backbone.", "model."),),
    states=dict.fromkeys(MAMBA, MAMBA_CHANNELS * "ssm_state_size" + CONVOLVED * "conv_kernel"),
    kinds=Paired(Listed("layers_block_type"), AllOrNone("moe_latent_size", having="latent")),
    epsilon="layer_norm_epsilon",
    logits_tolerance=1e-4,
)
