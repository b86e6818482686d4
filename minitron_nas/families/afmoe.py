"""Trinity Nano, Mini and Large: Gemma 3's norms and embeddings, Qwen 3's attention with gates on what heads put out.

Dense layers come first, then layers with experts and shared ones; most layers see a window, and the others have no
rotary positions.
"""

from minitron_nas.architecture.kinds import FirstLayers
from minitron_nas.architecture.layout import EXPERTS, HEAD_DIM, HIDDEN, KEYS, QUERIES, VOCAB, Layout, norm, only, row
from minitron_nas.families.glm4_moe import DENSE_FFN, EXPERTS_AND_SHARED

LAYOUT = Layout(
    model_type="afmoe",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES, when="attention_bias"),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.gate_proj.weight", QUERIES, HIDDEN),
        norm("model.layers.{layer}.self_attn.q_norm.weight", HEAD_DIM),
        norm("model.layers.{layer}.self_attn.k_norm.weight", HEAD_DIM),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
        row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN, on_branch=True),
        norm("model.layers.{layer}.pre_mlp_layernorm.weight", HIDDEN),
        *only("dense", *DENSE_FFN),
        *only(
            "experts",
            row("model.layers.{layer}.mlp.router.gate.weight", EXPERTS, HIDDEN),
            row("model.layers.{layer}.mlp.expert_bias", EXPERTS),
            *EXPERTS_AND_SHARED,
        ),
        norm("model.layers.{layer}.post_mlp_layernorm.weight", HIDDEN, on_branch=True),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    scales_embeddings=True,
    kinds=FirstLayers("num_dense_layers", first="dense", others="experts"),
    config_keys={"shared_expert_intermediate_size": ()},
    defaults={"head_dim": 128},
    requires={"mup_enabled": (True,)},
    reasons={"mup_enabled": "embeddings are multiplied by the square root of hidden_size"},
    finds_borders=False,
)
