"""GLM 4.5 to 4.7: dense layers first, then experts; shared experts are as wide as one, or several, of those."""

from minitron_nas.architecture.kinds import FirstLayers
from minitron_nas.architecture.layout import (
    EXPERT_NEURONS,
    EXPERTS,
    HEAD_DIM,
    HIDDEN,
    KEYS,
    NEURONS,
    QUERIES,
    SHARED_NEURONS,
    VOCAB,
    Layout,
    buffer,
    norm,
    only,
    row,
)

DENSE_FFN = (
    row("model.layers.{layer}.mlp.gate_proj.weight", NEURONS, HIDDEN),
    row("model.layers.{layer}.mlp.up_proj.weight", NEURONS, HIDDEN),
    row("model.layers.{layer}.mlp.down_proj.weight", HIDDEN, NEURONS),
)
EXPERTS_AND_SHARED = (
    row("model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight", EXPERT_NEURONS, HIDDEN),
    row("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", EXPERT_NEURONS, HIDDEN),
    row("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight", HIDDEN, EXPERT_NEURONS),
    row("model.layers.{layer}.mlp.shared_experts.gate_proj.weight", SHARED_NEURONS, HIDDEN),
    row("model.layers.{layer}.mlp.shared_experts.up_proj.weight", SHARED_NEURONS, HIDDEN),
    row("model.layers.{layer}.mlp.shared_experts.down_proj.weight", HIDDEN, SHARED_NEURONS),
)
SPARSE_FFN = (
    row("model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN),
    buffer("model.layers.{layer}.mlp.gate.e_score_correction_bias", EXPERTS),
    *EXPERTS_AND_SHARED,
)
"""What a layer with experts has; so has DeepSeek V3 and what follows it."""
EXPERT_KEYS = {
    "num_experts": ("n_routed_experts", "num_local_experts"),
    "num_expert_groups": ("n_group",),
    "num_groups_per_tok": ("topk_group",),
    "num_shared_experts": ("n_shared_experts",),
    "shared_expert_intermediate_size": (),
}

LAYOUT = Layout(
    model_type="glm4_moe",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES, when="attention_bias"),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
        norm("model.layers.{layer}.self_attn.q_norm.weight", HEAD_DIM, when="use_qk_norm"),
        norm("model.layers.{layer}.self_attn.k_norm.weight", HEAD_DIM, when="use_qk_norm"),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        *only("dense", *DENSE_FFN),
        *only("experts", *SPARSE_FFN),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    kinds=FirstLayers("first_k_dense_replace", first="dense", others="experts"),
    config_keys=EXPERT_KEYS,
    drops_later_layers=True,
)
