"""Granite 3 with experts: Granite's multipliers, and experts that lie in one tensor a layer."""

from minitron_nas.architecture.layout import EXPERTS, HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Layout, norm, row

STACKS = (
    (".router.layer.", ".router."),
    ("moe.input_linear.weight", "moe.experts.gate_up_proj"),
    ("moe.output_linear.weight", "moe.experts.down_proj"),
)
"""What holds the experts of a layer, in the checkpoint and in the model; Granite 4.0 H's, too."""

LAYOUT = Layout(
    model_type="granitemoe",
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
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.block_sparse_moe.router.layer.weight", EXPERTS, HIDDEN),
        row("model.layers.{layer}.block_sparse_moe.input_linear.weight[{expert}]", NEURONS + NEURONS, HIDDEN),
        row("model.layers.{layer}.block_sparse_moe.output_linear.weight[{expert}]", HIDDEN, NEURONS),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    config_keys={"num_experts": ("num_local_experts",)},
    defaults={"num_experts": 8, "num_experts_per_tok": 2},
    renamed=STACKS,
)
