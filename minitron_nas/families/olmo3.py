"""OLMo 3: OLMo 2's tensors; most layers see a window, with rotary positions of their own."""

from minitron_nas.architecture.layout import HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Layout, norm, row

LAYOUT = Layout(
    model_type="olmo3",
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
        row("model.layers.{layer}.mlp.gate_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.up_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.down_proj.weight", HIDDEN, NEURONS),
        norm("model.layers.{layer}.post_feedforward_layernorm.weight", HIDDEN, on_branch=True),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
)
