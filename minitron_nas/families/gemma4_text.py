"""Gemma 4: Gemma 3's norms; layers that see everything have heads of another size, and may have no values.

Either all layers have experts beside their FFN (26B-A4B), with norms of their own, or none has. In E2B and E4B every
layer also reads an embedding of its own, and the last layers have no keys and values of their own.
"""

from collections.abc import Iterator

from minitron_nas.architecture.kinds import GIVING, SHARING, AllOrNone, Listed, Paired, SharedKeys
from minitron_nas.architecture.layout import (
    EXPERT_NEURONS,
    EXPERTS,
    HEAD_DIM,
    HIDDEN,
    KEYS,
    LAYERS_VOCAB,
    NEURONS,
    QUERIES,
    VOCAB,
    WIDE_NEURONS,
    Axis,
    Dim,
    Layout,
    TensorRow,
    buffer,
    dim,
    norm,
    only,
    row,
)


def _of(attention: str, *words: str) -> tuple[str, ...]:
    """Return kinds of layers that attend in one way, without experts and with them."""
    kinds = [" ".join(filter(None, (attention, word))) for word in words]
    return (*kinds, *(f"{kind} experts" for kind in kinds))


def _attention(
    kinds: tuple[str, ...], with_keys: tuple[str, ...], queries: Dim, keys: Dim, head: Dim, unless: str | None = None
) -> Iterator[TensorRow]:
    """Yield the tensors of attention of layers of some kinds, not all of which have keys and values of their own."""
    yield from only(
        kinds,
        row("model.layers.{layer}.self_attn.q_proj.weight", queries, HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.bias", queries, when="attention_bias"),
    )
    yield from only(
        with_keys,
        row("model.layers.{layer}.self_attn.k_proj.weight", keys, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.bias", keys, when="attention_bias"),
        row("model.layers.{layer}.self_attn.v_proj.weight", keys, HIDDEN, unless=unless),
        row("model.layers.{layer}.self_attn.v_proj.bias", keys, when="attention_bias", unless=unless),
    )
    yield from only(kinds, norm("model.layers.{layer}.self_attn.q_norm.weight", head))
    yield from only(with_keys, norm("model.layers.{layer}.self_attn.k_norm.weight", head))
    yield from only(
        kinds,
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, queries),
        row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
    )


def _ffn(kinds: tuple[str, ...], neurons: Dim) -> tuple[TensorRow, ...]:
    """Return the tensors of the FFN of layers of some kinds."""
    return only(
        kinds,
        row("model.layers.{layer}.mlp.gate_proj.weight", neurons, HIDDEN),
        row("model.layers.{layer}.mlp.up_proj.weight", neurons, HIDDEN),
        row("model.layers.{layer}.mlp.down_proj.weight", HIDDEN, neurons),
    )


SLIDING, FULL = (_of(attention, "", GIVING) for attention in ("sliding_attention", "full_attention"))
SLIDING_SHARING, FULL_SHARING = (_of(attention, SHARING) for attention in ("sliding_attention", "full_attention"))
ALL_SLIDING, ALL_FULL = (*SLIDING, *SLIDING_SHARING), (*FULL, *FULL_SHARING)
EXPERTS_BESIDE = tuple(kind for kind in (*ALL_SLIDING, *ALL_FULL) if kind.endswith("experts"))
GLOBAL_HEAD = dim("full_attention.head_dim")
GLOBAL_QUERIES = dim("num_attention_heads", "full_attention.head_dim")
GLOBAL_KEYS = dim("full_attention.num_key_value_heads", "full_attention.head_dim")
PER_LAYER = "hidden_size_per_layer_input"
OF_ALL_LAYERS = dim(Axis.LAYERS, PER_LAYER)

LAYOUT = Layout(
    model_type="gemma4_text",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        row("model.embed_tokens_per_layer.weight", dim(LAYERS_VOCAB), OF_ALL_LAYERS, when=PER_LAYER),
        row("model.per_layer_model_projection.weight", OF_ALL_LAYERS, HIDDEN, when=PER_LAYER),
        norm("model.per_layer_projection_norm.weight", dim(PER_LAYER), when=PER_LAYER),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        *_attention(ALL_SLIDING, SLIDING, QUERIES, KEYS, HEAD_DIM),
        *_attention(ALL_FULL, FULL, GLOBAL_QUERIES, GLOBAL_KEYS, GLOBAL_HEAD, unless="attention_k_eq_v"),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN, on_branch=True),
        norm("model.layers.{layer}.pre_feedforward_layernorm.weight", HIDDEN),
        *_ffn((*SLIDING, *FULL), NEURONS),
        *_ffn((*SLIDING_SHARING, *FULL_SHARING), WIDE_NEURONS),
        *only(
            EXPERTS_BESIDE,
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
        row("model.layers.{layer}.per_layer_input_gate.weight", dim(PER_LAYER), HIDDEN, when=PER_LAYER),
        row("model.layers.{layer}.per_layer_projection.weight", HIDDEN, dim(PER_LAYER), when=PER_LAYER),
        norm("model.layers.{layer}.post_per_layer_input_norm.weight", HIDDEN, on_branch=True, when=PER_LAYER),
        buffer("model.layers.{layer}.layer_scalar", dim()),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    scales_embeddings=True,
    fixed=("num_attention_heads", "num_key_value_heads"),
    fixed_attention={"full_attention": GLOBAL_KEYS + GLOBAL_KEYS},
    defaults={"tie_word_embeddings": True},
    config_keys={"num_experts_per_tok": ("top_k_experts",), "double_wide_ffn": ("use_double_wide_mlp",)},
    kinds=Paired(
        Listed("layer_types"),
        Paired(
            SharedKeys("num_kv_shared_layers", Listed("layer_types"), beside=PER_LAYER),
            AllOrNone("enable_moe_block", having="experts"),
        ),
    ),
    last_kind="full_attention",
    logits_tolerance=2e-5,
    requires={"use_bidirectional_attention": (None, "vision")},
    reasons={"use_bidirectional_attention": "tokens that see those after them make no causal language model"},
)
