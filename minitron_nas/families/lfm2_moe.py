"""LFM2 with experts: its short convolutions and attention, dense layers first."""

from minitron_nas.architecture.kinds import FirstLayers, Listed, Paired
from minitron_nas.architecture.layout import (
    CONV_CHANNELS,
    EXPERT_NEURONS,
    EXPERTS,
    HIDDEN,
    VOCAB,
    Layout,
    buffer,
    norm,
    only,
    row,
)
from minitron_nas.families.lfm2 import ATTENTION, CONVOLUTION, FFN

CONVOLUTIONS = ("conv", "conv dense")

LAYOUT = Layout(
    model_type="lfm2_moe",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.operator_norm.weight", HIDDEN),
        *only(CONVOLUTIONS, *CONVOLUTION),
        *only(("full_attention", "full_attention dense"), *ATTENTION),
        norm("model.layers.{layer}.ffn_norm.weight", HIDDEN),
        *only(("conv dense", "full_attention dense"), *FFN),
        *only(
            ("conv", "full_attention"),
            row("model.layers.{layer}.feed_forward.gate.weight", EXPERTS, HIDDEN),
            buffer("model.layers.{layer}.feed_forward.expert_bias", EXPERTS),
            row("model.layers.{layer}.feed_forward.experts.{expert}.w1.weight", EXPERT_NEURONS, HIDDEN),
            row("model.layers.{layer}.feed_forward.experts.{expert}.w3.weight", EXPERT_NEURONS, HIDDEN),
            row("model.layers.{layer}.feed_forward.experts.{expert}.w2.weight", HIDDEN, EXPERT_NEURONS),
        ),
        norm("model.embedding_norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    defaults={"tie_word_embeddings": True},
    requires={"use_expert_bias": (True,)},
    states=dict.fromkeys(CONVOLUTIONS, CONV_CHANNELS * "conv_L_cache"),
    kinds=Paired(Listed("layer_types"), FirstLayers("num_dense_layers", first="dense", others="")),
    epsilon="norm_eps",
)
