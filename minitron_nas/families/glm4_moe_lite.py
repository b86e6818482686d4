"""GLM 4.7 Flash: DeepSeek V3's attention through latents, GLM 4.5's layers with experts."""

from minitron_nas.architecture.kinds import Listed
from minitron_nas.architecture.layout import HIDDEN, VOCAB, Layout, norm, only, row
from minitron_nas.families.deepseek_v3 import LATENT_ATTENTION, LATENT_QUERIES, LATENTS, ROTARY
from minitron_nas.families.glm4_moe import DENSE_FFN, EXPERT_KEYS, SPARSE_FFN

LAYOUT = Layout(
    model_type="glm4_moe_lite",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        *LATENT_QUERIES,
        *LATENT_ATTENTION,
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        *only("dense", *DENSE_FFN),
        *only("sparse", *SPARSE_FFN),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    kinds=Listed("mlp_layer_types"),
    logits_tolerance=1e-5,
    cached=LATENTS + ROTARY,
    config_keys=EXPERT_KEYS | {"head_dim": ("qk_rope_head_dim",)},
    drops_later_layers=True,
)
