"""Qwen 3.5 and later with experts: three of four layers are gated delta nets; a shared expert has a gate of its own."""

from minitron_nas.architecture.kinds import Listed
from minitron_nas.architecture.layout import (
    EXPERT_NEURONS,
    EXPERTS,
    EXPERTS_IN_STACKS,
    HIDDEN,
    SHARED_NEURONS,
    VOCAB,
    Layout,
    dim,
    norm,
    row,
)
from minitron_nas.families.qwen3_5_text import DELTA_STATES, GATED_ATTENTION, GATED_DELTA_NET

SPARSE_FFN = (
    row("model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN),
    row("model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight", EXPERT_NEURONS, HIDDEN),
    row("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", EXPERT_NEURONS, HIDDEN),
    row("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight", HIDDEN, EXPERT_NEURONS),
    row("model.layers.{layer}.mlp.shared_expert.gate_proj.weight", SHARED_NEURONS, HIDDEN),
    row("model.layers.{layer}.mlp.shared_expert.up_proj.weight", SHARED_NEURONS, HIDDEN),
    row("model.layers.{layer}.mlp.shared_expert.down_proj.weight", HIDDEN, SHARED_NEURONS),
    row("model.layers.{layer}.mlp.shared_expert_gate.weight", dim(), HIDDEN),
)
"""A router, its experts, and one that every token is sent to, with a gate of its own."""

LAYOUT = Layout(
    model_type="qwen3_5_moe_text",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        *GATED_DELTA_NET,
        *GATED_ATTENTION,
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        *SPARSE_FFN,
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    norm="rms_plus_one",
    stacked=EXPERTS_IN_STACKS,
    states={"linear_attention": DELTA_STATES},
    kinds=Listed("layer_types"),
    logits_tolerance=1e-3,
)
