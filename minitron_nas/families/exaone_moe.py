"""K-EXAONE: EXAONE 4's attention behind norms, layers that see a window, dense layers and layers with experts."""

from minitron_nas.architecture.kinds import Listed
from minitron_nas.architecture.layout import (
    EXPERTS,
    HEAD_DIM,
    HIDDEN,
    KEYS,
    QUERIES,
    VOCAB,
    Layout,
    buffer,
    norm,
    only,
    row,
)
from minitron_nas.families.glm4_moe import DENSE_FFN, EXPERTS_AND_SHARED

LAYOUT = Layout(
    model_type="exaone_moe",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        norm("model.layers.{layer}.self_attn.q_norm.weight", HEAD_DIM),
        norm("model.layers.{layer}.self_attn.k_norm.weight", HEAD_DIM),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        *only("dense", *DENSE_FFN),
        *only(
            "sparse",
            row("model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN),
            buffer("model.layers.{layer}.mlp.e_score_correction_bias", EXPERTS),
            *EXPERTS_AND_SHARED,
        ),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    kinds=Listed("mlp_layer_types"),
    config_keys={
        "num_expert_groups": ("n_group",),
        "num_groups_per_tok": ("topk_group",),
        "shared_expert_intermediate_size": (),
    },
    renamed=((".mlp.e_score_correction_bias", ".mlp.gate.e_score_correction_bias"),),
    ignored_modules=("mtp.",),
)
