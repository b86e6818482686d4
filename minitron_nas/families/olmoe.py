"""OLMoE: experts, and norms over the queries and keys of all heads, of which there are hidden_size channels."""

from minitron_nas.architecture.layout import EXPERTS, HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Layout, norm, row

LAYOUT = Layout(
    model_type="olmoe",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES, when="attention_bias"),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
        norm("model.layers.{layer}.self_attn.q_norm.weight", QUERIES),
        norm("model.layers.{layer}.self_attn.k_norm.weight", KEYS),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
        row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN),
        row("model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight", HIDDEN, NEURONS),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    head_dim_is_derived=True,
    config_keys={"head_dim": ()},
    defaults={"num_experts": 64, "num_experts_per_tok": 8},
    requires={"clip_qkv": (None,)},
)
