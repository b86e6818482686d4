"""HyperCLOVA X SEED Think 14B: Granite's multipliers, of which that of logits multiplies.

Norms act on what attention and FFN add, unless the config says that there are none.
"""

from minitron_nas.architecture.layout import HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Layout, norm, row

LAYOUT = Layout(
    model_type="hyperclovax",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES, when="attention_bias"),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
        row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
        norm("model.layers.{layer}.post_norm1.weight", HIDDEN, on_branch=True, when="use_post_norm"),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.mlp.gate_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.gate_proj.bias", NEURONS, when="mlp_bias"),
        row("model.layers.{layer}.mlp.up_proj.weight", NEURONS, HIDDEN),
        row("model.layers.{layer}.mlp.up_proj.bias", NEURONS, when="mlp_bias"),
        row("model.layers.{layer}.mlp.down_proj.weight", HIDDEN, NEURONS),
        row("model.layers.{layer}.mlp.down_proj.bias", HIDDEN, when="mlp_bias"),
        norm("model.layers.{layer}.post_norm2.weight", HIDDEN, on_branch=True, when="use_post_norm"),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    multiplies_logits=True,
    hidden_multiple_of_heads=True,
    defaults={"use_post_norm": True},
)
