"""DeepSeek V2 Lite: keys and values through latents of a fixed size, queries without; experts and shared ones."""

from minitron_nas.architecture.kinds import FirstLayers
from minitron_nas.architecture.layout import EXPERTS, HIDDEN, VOCAB, Layout, norm, only, row
from minitron_nas.families.deepseek_v3 import LATENT_ATTENTION, LATENTS, QUERIES, ROTARY
from minitron_nas.families.glm4_moe import DENSE_FFN, EXPERT_KEYS, EXPERTS_AND_SHARED

LAYOUT = Layout(
    model_type="deepseek_v2",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        *LATENT_ATTENTION,
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        *only("dense", *DENSE_FFN),
        *only(
            "experts",
            row("model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN),
            *EXPERTS_AND_SHARED,
        ),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    hidden_multiple_of_heads=True,
    kinds=FirstLayers("first_k_dense_replace", first="dense", others="experts"),
    logits_tolerance=1e-5,
    cached=LATENTS + ROTARY,
    config_keys=EXPERT_KEYS | {"num_experts": ("n_routed_experts",)},
    requires={"q_lora_rank": (None,), "mlp_bias": (False,)},
    reasons={"q_lora_rank": "queries through latents, as V2 of 236B has them"},
)
