"""DeepSeek V2 and Lite: keys and values through latents of a fixed size, V2's queries, too; experts, shared ones."""

from minitron_nas.architecture.layout import EXPERTS, HIDDEN, VOCAB, Layout, norm, only, row
from minitron_nas.families.deepseek_v3 import (
    DENSE,
    KINDS,
    LATENT_ATTENTION,
    LATENT_OR_DIRECT_QUERIES,
    LATENTS,
    ROTARY,
    SPARSE,
)
from minitron_nas.families.glm4_moe import DENSE_FFN, EXPERT_KEYS, EXPERTS_AND_SHARED

LAYOUT = Layout(
    model_type="deepseek_v2",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        *LATENT_OR_DIRECT_QUERIES,
        *LATENT_ATTENTION,
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        *only(DENSE, *DENSE_FFN),
        *only(
            SPARSE,
            row("model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN),
            *EXPERTS_AND_SHARED,
        ),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    hidden_multiple_of_heads=True,
    kinds=KINDS,
    logits_tolerance=1e-5,
    cached=LATENTS + ROTARY,
    config_keys=EXPERT_KEYS | {"num_experts": ("n_routed_experts",)},
    groups_when={"topk_method": "group_limited_greedy"},
    ranks_groups_by_best=True,
    requires={"mlp_bias": (False,), "topk_method": ("greedy", "group_limited_greedy")},
)
