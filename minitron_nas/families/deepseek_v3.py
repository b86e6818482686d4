"""DeepSeek V3, R1 and Kimi K2: attention through latents of a fixed size; dense layers first, experts in groups."""

from minitron_nas.architecture.kinds import FirstLayers
from minitron_nas.architecture.layout import (
    EXPERT_NEURONS,
    EXPERTS,
    HIDDEN,
    NEURONS,
    SHARED_NEURONS,
    VOCAB,
    Axis,
    Layout,
    buffer,
    dim,
    norm,
    only,
    row,
)

QUERY_LATENTS, LATENTS, ROTARY = dim("q_lora_rank"), dim("kv_lora_rank"), dim("qk_rope_head_dim")
QUERIES = dim(Axis.KV_GROUPS, Axis.GROUP_HEADS, ("qk_nope_head_dim", "qk_rope_head_dim"))
KEYS_AND_VALUES = dim(Axis.KV_GROUPS, Axis.GROUP_HEADS, ("qk_nope_head_dim", "v_head_dim"))
"""The keys and the values of the first head, then those of the second, and so on."""
VALUES = dim(Axis.KV_GROUPS, Axis.GROUP_HEADS, "v_head_dim")

LAYOUT = Layout(
    model_type="deepseek_v3",
    rows=(
        row("model.embed_tokens.weight", VOCAB, HIDDEN),
        norm("model.layers.{layer}.input_layernorm.weight", HIDDEN),
        row("model.layers.{layer}.self_attn.q_a_proj.weight", QUERY_LATENTS, HIDDEN),
        row("model.layers.{layer}.self_attn.q_a_proj.bias", QUERY_LATENTS, when="attention_bias"),
        norm("model.layers.{layer}.self_attn.q_a_layernorm.weight", QUERY_LATENTS),
        row("model.layers.{layer}.self_attn.q_b_proj.weight", QUERIES, QUERY_LATENTS),
        row("model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight", LATENTS + ROTARY, HIDDEN),
        row("model.layers.{layer}.self_attn.kv_a_proj_with_mqa.bias", LATENTS + ROTARY, when="attention_bias"),
        norm("model.layers.{layer}.self_attn.kv_a_layernorm.weight", LATENTS),
        row("model.layers.{layer}.self_attn.kv_b_proj.weight", KEYS_AND_VALUES, LATENTS),
        row("model.layers.{layer}.self_attn.o_proj.weight", HIDDEN, VALUES),
        row("model.layers.{layer}.self_attn.o_proj.bias", HIDDEN, when="attention_bias"),
        norm("model.layers.{layer}.post_attention_layernorm.weight", HIDDEN),
        *only(
            "dense",
            row("model.layers.{layer}.mlp.gate_proj.weight", NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.up_proj.weight", NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.down_proj.weight", HIDDEN, NEURONS),
        ),
        *only(
            "experts",
            row("model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN),
            buffer("model.layers.{layer}.mlp.gate.e_score_correction_bias", EXPERTS),
            row("model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight", EXPERT_NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", EXPERT_NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight", HIDDEN, EXPERT_NEURONS),
            row("model.layers.{layer}.mlp.shared_experts.gate_proj.weight", SHARED_NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.shared_experts.up_proj.weight", SHARED_NEURONS, HIDDEN),
            row("model.layers.{layer}.mlp.shared_experts.down_proj.weight", HIDDEN, SHARED_NEURONS),
        ),
        norm("model.norm.weight", HIDDEN),
        row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings"),
    ),
    kinds=FirstLayers("first_k_dense_replace", first="dense", others="experts"),
    logits_tolerance=1e-5,
    cached=LATENTS + ROTARY,
    config_keys={
        "num_experts": ("n_routed_experts", "num_local_experts"),
        "num_expert_groups": ("n_group",),
        "num_shared_experts": ("n_shared_experts",),
        "shared_expert_intermediate_size": (),
    },
    drops_later_layers=True,
)
