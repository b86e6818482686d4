"""Qwen3-Next: three of four layers are gated delta nets, their projections fused; a shared expert has its own gate.

Layers have experts unless `mlp_only_layers` names them, whatever their attention.
"""

from minitron_nas.architecture.kinds import Indexed, Listed, Paired
from minitron_nas.architecture.layout import (
    HIDDEN,
    NEURONS,
    VOCAB,
    Layout,
    dim,
    norm,
    only,
    row,
)
from minitron_nas.families.qwen3_5_moe_text import SPARSE_FFN
from minitron_nas.families.qwen3_5_text import (
    CONVOLVED,
    DELTA_HEADS,
    DELTA_KEYS,
    DELTA_STATES,
    DELTA_VALUES,
    GATED_ATTENTION,
)

DELTA_NETS = ("linear_attention", "linear_attention dense")
BY_KEY_HEAD = DELTA_KEYS + DELTA_KEYS + DELTA_VALUES + DELTA_VALUES
"""Query, key, values and gates of the first key head, then those of the second, and so on; all of it stays."""

LAYOUT = Layout(
    model_type="qwen3_next",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        *only(
            DELTA_NETS,
            row("model.layers.{layer}.linear_attn.in_proj_qkvz.weight", BY_KEY_HEAD, HIDDEN),
            row("model.layers.{layer}.linear_attn.in_proj_ba.weight", DELTA_HEADS + DELTA_HEADS, HIDDEN),
            row("model.layers.{layer}.linear_attn.conv1d.weight", CONVOLVED, dim(), dim("linear_conv_kernel_dim")),
            row("model.layers.{layer}.linear_attn.dt_bias", DELTA_HEADS),
            row("model.layers.{layer}.linear_attn.A_log", DELTA_HEADS),
            norm("model.layers.{layer}.linear_attn.norm.weight", dim("linear_value_head_dim")),
            row("model.layers.{layer}.linear_attn.out_proj.weight", HIDDEN, DELTA_VALUES),
        ),
        *only(("full_attention", "full_attention dense"), *GATED_ATTENTION),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        *only(
            ("linear_attention dense", "full_attention dense"),
            row("model.layers.{layer}.mlp.gate_proj.weight", NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.up_proj.weight", NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.down_proj.weight", HIDDEN, NEURONS),
        ),
        *only(("linear_attention", "full_attention"), *SPARSE_FFN),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    norm="rms_plus_one",
    requires={"decoder_sparse_step": (1,)},
    reasons={"decoder_sparse_step": "name the layers without experts in mlp_only_layers, which says the same"},
    ignored_modules=("mtp.",),
    states=dict.fromkeys(DELTA_NETS, DELTA_STATES),
    kinds=Paired(Listed("layer_types"), Indexed("mlp_only_layers", listed="dense", others="")),
    logits_tolerance=1e-3,
)
