"""FlexOlmo: OLMo 2's attention and norms, with experts."""

from minitron_nas.architecture.layout import EXPERTS, HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Layout, norm, row

LAYOUT = Layout(
    model_type="flex_olmo",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
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
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN, on_branch=True),
        row("model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN),
        row("model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight", HIDDEN, NEURONS),
        norm("model.layers.{layer}.post_feedforward_layernorm.weight", HIDDEN, on_branch=True),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    defaults={"num_experts": 7, "num_experts_per_tok": 5},
)
