"""gpt-oss: experts in one tensor a layer, with biases and a gate of their own, and a sink for each head."""

from minitron_nas.architecture.layout import (
    EXPERTS,
    GATE_UP_BY_NEURON,
    HIDDEN,
    KEYS,
    NEURONS,
    QUERIES,
    VOCAB,
    Axis,
    Layout,
    dim,
    norm,
    row,
)

HEADS = dim(Axis.KV_GROUPS, Axis.GROUP_HEADS)

LAYOUT = Layout(
    model_type="gpt_oss",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.self_attn.sinks", HEADS),
        row("model.layers.{layer}.self_attn.q_proj.weight", QUERIES, HIDDEN),
        row("model.layers.{layer}.self_attn.q_proj.bias", QUERIES, when="attention_bias"),
        row("model.layers.{layer}.self_attn.k_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.k_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.v_proj.weight", KEYS, HIDDEN),
        row("model.layers.{layer}.self_attn.v_proj.bias", KEYS, when="attention_bias"),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, QUERIES),
        row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.mlp.router.weight", EXPERTS, HIDDEN),
        row("model.layers.{layer}.mlp.router.bias", EXPERTS),
        row("model.layers.{layer}.mlp.experts.gate_up_proj[{expert}]", HIDDEN, GATE_UP_BY_NEURON, inputs_first=True),
        row("model.layers.{layer}.mlp.experts.gate_up_proj_bias[{expert}]", GATE_UP_BY_NEURON),
        row("model.layers.{layer}.mlp.experts.down_proj[{expert}]", NEURONS, HIDDEN, inputs_first=True),
        row("model.layers.{layer}.mlp.experts.down_proj_bias[{expert}]", HIDDEN),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    finds_borders=False,
    config_keys={"num_experts": ("num_local_experts", "num_experts")},
    defaults={"num_experts": 128, "num_experts_per_tok": 4, "attention_bias": True},
)
