"""Command A+: Command R7B's attention, and experts that read what it reads; dense layers where the config names them.

Either all layers with experts have shared ones beside them, or none has.
"""

from minitron_nas.architecture.kinds import AllOrNone, Listed, Paired
from minitron_nas.architecture.layout import (
    EXPERT_NEURONS,
    EXPERTS,
    HIDDEN,
    KEYS,
    QUERIES,
    SHARED_NEURONS,
    VOCAB,
    Layout,
    norm,
    only,
    row,
)
from minitron_nas.families.glm4_moe import DENSE_FFN

DENSE = ("dense", "dense shared")
SPARSE = ("sparse", "sparse shared")

LAYOUT = Layout(
    model_type="cohere2_moe",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES, when="attention_bias"),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
        row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
        *only(DENSE, *DENSE_FFN),
        *only(
            SPARSE,
            row("model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN),
            row("model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight", EXPERT_NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", EXPERT_NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight", HIDDEN, EXPERT_NEURONS),
        ),
        *only(
            SPARSE[1],
            row("model.layers.{layer}.mlp.shared_experts.gate_proj.weight", SHARED_NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.shared_experts.up_proj.weight", SHARED_NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.shared_experts.down_proj.weight", HIDDEN, SHARED_NEURONS),
        ),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    norm="layer",
    kinds=Paired(Listed("mlp_layer_types"), AllOrNone("num_shared_experts", having="shared")),
    config_keys={
        "intermediate_size": ("prefix_dense_intermediate_size",),
        "moe_intermediate_size": ("intermediate_size",),
        "shared_expert_intermediate_size": (),
    },
    defaults={"head_dim": 128, "num_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": True},
    requires={"rms_norm_eps": (None,)},
    reasons={"rms_norm_eps": "without it norms are LayerNorms"},
)
