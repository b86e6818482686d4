"""Gemma 4, dense: Gemma 3's norms; layers that see everything have heads of another size, and may have no values."""

from minitron_nas.architecture.kinds import Listed
from minitron_nas.architecture.layout import (
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

GLOBAL_HEAD = dim("full_attention.head_dim")
GLOBAL_QUERIES = dim("num_attention_heads", "full_attention.head_dim")
GLOBAL_KEYS = dim("full_attention.num_key_value_heads", "full_attention.head_dim")

LAYOUT = Layout(
    model_type="gemma4_text",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        *only(
            "sliding_attention",
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
            "full_attention",
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
        norm("model.layers.{layer}.post_feedforward_layernorm.weight", HIDDEN, on_branch=True),
        buffer("model.layers.{layer}.layer_scalar", dim()),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    scales_embeddings=True,
    fixed=("num_attention_heads", "num_key_value_heads"),
    fixed_attention={"full_attention": GLOBAL_KEYS + GLOBAL_KEYS},
    defaults={"tie_word_embeddings": True},
    kinds=Listed("layer_types"),
    logits_tolerance=2e-5,
    requires={
        "hidden_size_per_layer_input": (0, None),
        "num_kv_shared_layers": (0,),
        "enable_moe_block": (False,),
        "use_bidirectional_attention": (None, "vision"),
    },
    reasons={
        "hidden_size_per_layer_input": "embeddings of every layer (Gemma 4 E2B, E4B) lie in tensors of all layers, of "
        "which fewer layers would need a part",
        "num_kv_shared_layers": "layers without keys of their own read those of one layer before them, which could not "
        "leave",
        "enable_moe_block": "experts beside the FFN (Gemma 4 26B-A4B) are weighed by a router with a norm of its own",
        "use_bidirectional_attention": "tokens that see those after them make no causal language model",
    },
)
