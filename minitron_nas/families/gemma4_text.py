"""Gemma 4: Gemma 3's norms; layers that see everything have heads of another size, and may have no values.

Either all layers have experts beside their FFN (26B-A4B), with norms of their own, or none has.
"""

from minitron_nas.architecture.kinds import AllOrNone, Listed, Paired
from minitron_nas.architecture.layout import (
    EXPERT_NEURONS,
    EXPERTS,
    HEAD_DIM,
    HIDDEN,
    KEYS,
    NEURONS,
    QUERIES,
    VOCAB,
    Layout,
    buffer,
    dim,
    norm,
    only,
    row,
)

SLIDING, FULL = ((kind, f"{kind} experts") for kind in ("sliding_attention", "full_attention"))
GLOBAL_HEAD = dim("full_attention.head_dim")
GLOBAL_QUERIES = dim("num_attention_heads", "full_attention.head_dim")
GLOBAL_KEYS = dim("full_attention.num_key_value_heads", "full_attention.head_dim")

LAYOUT = Layout(
    model_type="gemma4_text",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        *only(
            SLIDING,
            row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
            row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES, when="attention_bias"),
            row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
            row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
            row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
            row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
            norm("model.layers.{layer}.self_attn.q_norm.weight", HEAD_DIM),
            norm("model.layers.{layer}.self_attn.k_norm.weight", HEAD_DIM),
            row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
            row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
        ),
        *only(
            FULL,
            row("model.layers.{layer}.self_attn.q_proj.weight", GLOBAL_QUERIES, HIDDEN),
            row("model.layers.{layer}.self_attn.q_proj.bias", GLOBAL_QUERIES, when="attention_bias"),
            row("model.layers.{layer}.self_attn.k_proj.weight", GLOBAL_KEYS, HIDDEN),
            row("model.layers.{layer}.self_attn.k_proj.bias", GLOBAL_KEYS, when="attention_bias"),
            row("model.layers.{layer}.self_attn.v_proj.weight", GLOBAL_KEYS, HIDDEN, unless="attention_k_eq_v"),
            row(
                "model.layers.{layer}.self_attn.v_proj.bias",
                GLOBAL_KEYS,
                when="attention_bias",
                unless="attention_k_eq_v",
            ),
            norm("model.layers.{layer}.self_attn.q_norm.weight", GLOBAL_HEAD),
            norm("model.layers.{layer}.self_attn.k_norm.weight", GLOBAL_HEAD),
            row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, GLOBAL_QUERIES),
            row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
        ),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN, on_branch=True),
        norm("model.layers.{layer}.pre_feedforward_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.mlp.gate_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.up_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.down_proj.weight", HIDDEN, NEURONS),
        *only(
            (SLIDING[1], FULL[1]),
            norm("model.layers.{layer}.post_feedforward_layernorm_1.weight", HIDDEN, on_branch=True),
            row("model.layers.{layer}.router.scale", HIDDEN),
            row("model.layers.{layer}.router.proj.weight", EXPERTS, HIDDEN),
            row("model.layers.{layer}.router.per_expert_scale", EXPERTS),
            norm("model.layers.{layer}.pre_feedforward_layernorm_2.weight", HIDDEN),
            row("model.layers.{layer}.experts.gate_up_proj[{expert}]", EXPERT_NEURONS + EXPERT_NEURONS, HIDDEN),
            row("model.layers.{layer}.experts.down_proj[{expert}]", HIDDEN, EXPERT_NEURONS),
            norm("model.layers.{layer}.post_feedforward_layernorm_2.weight", HIDDEN, on_branch=True),
        ),
        norm("model.layers.{layer}.post_feedforward_layernorm.weight", HIDDEN, on_branch=True),
        buffer("model.layers.{layer}.layer_scalar", dim()),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    scales_embeddings=True,
    fixed=("num_attention_heads", "num_key_value_heads"),
    fixed_attention={"full_attention": GLOBAL_KEYS + GLOBAL_KEYS},
    defaults={"tie_word_embeddings": True},
    config_keys={"num_experts_per_tok": ("top_k_experts",)},
    kinds=Paired(Listed("layer_types"), AllOrNone("enable_moe_block", having="experts")),
    logits_tolerance=2e-5,
    requires={
        "hidden_size_per_layer_input": (0, None),
        "num_kv_shared_layers": (0,),
        "use_bidirectional_attention": (None, "vision"),
    },
    reasons={
        "hidden_size_per_layer_input": "embeddings of every layer (Gemma 4 E2B, E4B) lie in tensors of all layers, of "
        "which fewer layers would need a part",
        "num_kv_shared_layers": "layers without keys of their own read those of one layer before them, which could not "
        "leave",
        "use_bidirectional_attention": "tokens that see those after them make no causal language model",
    },
)
