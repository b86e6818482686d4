"""DeepSeek V3, R1, Kimi K2, Moonlight: attention through latents of a fixed size; dense layers, then experts in groups.

Where the config has no `q_lora_rank` (Moonlight), queries are computed without latents.
"""

from minitron_nas.architecture.kinds import AllOrNone, FirstLayers, Paired
from minitron_nas.architecture.layout import (
    HIDDEN,
    VOCAB,
    Axis,
    Layout,
    dim,
    norm,
    only,
    row,
)
from minitron_nas.families.glm4_moe import DENSE_FFN, EXPERT_KEYS, SPARSE_FFN

QUERY_LATENTS, LATENTS, ROTARY = dim("q_lora_rank"), dim("kv_lora_rank"), dim("qk_rope_head_dim")
QUERIES = dim(Axis.KV_GROUPS, Axis.GROUP_HEADS, ("qk_nope_head_dim", "qk_rope_head_dim"))
KEYS_AND_VALUES = dim(Axis.KV_GROUPS, Axis.GROUP_HEADS, ("qk_nope_head_dim", "v_head_dim"))
"""The keys and the values of the first head, then those of the second, and so on."""
VALUES = dim(Axis.KV_GROUPS, Axis.GROUP_HEADS, "v_head_dim")
LATENT_QUERIES = (
    row("model.layers.{layer}.self_attn.q_a_proj.weight", QUERY_LATENTS, HIDDEN),
    row("model.layers.{layer}.self_attn.q_a_proj.bias", QUERY_LATENTS, when="attention_bias"),
    norm("model.layers.{layer}.self_attn.q_a_layernorm.weight", QUERY_LATENTS),
    row("model.layers.{layer}.self_attn.q_b_proj.weight", QUERIES, QUERY_LATENTS),
)
DENSE, SPARSE = ("dense", "dense direct"), ("experts", "experts direct")
LATENT_OR_DIRECT_QUERIES = (
    *only((DENSE[0], SPARSE[0]), *LATENT_QUERIES),
    *only((DENSE[1], SPARSE[1]), row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN)),
)
KINDS = Paired(
    FirstLayers("first_k_dense_replace", first=DENSE[0], others=SPARSE[0]), AllOrNone("q_lora_rank", lacking="direct")
)
"""Of layers, by their FFN and by whether queries go through latents; DeepSeek V2's, too."""
LATENT_ATTENTION = (
    row("model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight", LATENTS + ROTARY, HIDDEN),
    row("model.layers.{layer}.self_attn.kv_a_proj_with_mqa.bias", LATENTS + ROTARY, when="attention_bias"),
    norm("model.layers.{layer}.self_attn.kv_a_layernorm.weight", LATENTS),
    row("model.layers.{layer}.self_attn.kv_b_proj.weight", KEYS_AND_VALUES, LATENTS),
    row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, VALUES),
    row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
)
"""All that comes after the queries; DeepSeek V2's, too."""

LAYOUT = Layout(
    model_type="deepseek_v3",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        *LATENT_OR_DIRECT_QUERIES,
        *LATENT_ATTENTION,
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        *only(DENSE, *DENSE_FFN),
        *only(SPARSE, *SPARSE_FFN),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    kinds=KINDS,
    logits_tolerance=1e-5,
    cached=LATENTS + ROTARY,
    config_keys=EXPERT_KEYS,
    drops_later_layers=True,
)
