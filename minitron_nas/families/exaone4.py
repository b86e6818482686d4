"""EXAONE 4: norms after attention and FFN only, and over each head's queries and keys; layers with a window."""

from minitron_nas.architecture.layout import HEAD_DIM, HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Layout, norm, row

LAYOUT = Layout(
    model_type="exaone4",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        norm("model.layers.{layer}.self_attn.q_norm.weight", HEAD_DIM),
        norm("model.layers.{layer}.self_attn.k_norm.weight", HEAD_DIM),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN, on_branch=True),
        row("model.layers.{layer}.mlp.gate_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.up_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.down_proj.weight", HIDDEN, NEURONS),
        norm("model.layers.{layer}.post_feedforward_layernorm.weight", HIDDEN, on_branch=True),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
)
