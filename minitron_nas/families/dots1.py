"""dots.llm1: Qwen 3's attention, dense layers first, then experts and shared ones."""

from minitron_nas.architecture.kinds import FirstLayers
from minitron_nas.architecture.layout import HEAD_DIM, HIDDEN, KEYS, QUERIES, VOCAB, Layout, norm, only, row
from minitron_nas.families.glm4_moe import DENSE_FFN, EXPERT_KEYS, SPARSE_FFN

LAYOUT = Layout(
    model_type="dots1",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
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
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        *only("dense", *DENSE_FFN),
        *only("experts", *SPARSE_FFN),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    kinds=FirstLayers("first_k_dense_replace", first="dense", others="experts"),
    config_keys=EXPERT_KEYS,
)
