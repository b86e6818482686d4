"""Every family table against transformers, what people do with a family, and the README's example of a new one."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

import minitron_nas.families
from minitron_nas.families.catalog import layouts
from minitron_nas.testing import CHECKS, USES, Subject, check_family, check_use, tiny_config
from minitron_nas.testing.conformance import (
    check_masked_teacher,
    check_nothing_pruned,
    check_units,
    check_written,
)
from minitron_nas.testing.tiny import TINY_E2B, TINY_E4B
from minitron_nas.testing.use import check_axes, check_depth, check_distils, check_scores, check_steps


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **settings}}


ROPES = (
    rope("linear", factor=2.0),
    rope("dynamic", factor=2.0),
    rope("yarn", factor=2.0, original_max_position_embeddings=64),
    rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
)
BIAS, WINDOW = {"attention_bias": True}, {"sliding_window": 5}
BIASES = {**BIAS, "mlp_bias": True}
MULTIPLIERS = {"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}
FALCON = {
    "attention_out_multiplier": 0.8,
    "embedding_multiplier": 3.0,
    "key_multiplier": 0.7,
    "lm_head_multiplier": 0.5,
    "mlp_multipliers": [0.9, 1.2],
    "ssm_multipliers": [0.5, 0.25, 2.0, 0.5, 1.0],
}
IN_GROUPS = {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}
MIXED = ("linear_attention", "moe", "full_attention", "mlp")
OF_GRANITE = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 40}
LONGROPE = rope(
    "longrope",
    short_factor=[1.0] * 4,
    long_factor=[2.0] * 4,
    original_max_position_embeddings=64,
    short_mscale=1.2,
    long_mscale=1.3,
)
YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 64}
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "gpt_neox": ({"attention_bias": False},),
    "llama": ({**BIASES}, {"num_key_value_heads": 6}, *ROPES),
    "nemotron": ({**BIASES},),
    "phi3": (rope("longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_max_position_embeddings=64),),
    "qwen3": ({**BIAS},),
    "starcoder2": ({"use_bias": False},),
}
WHOLE: dict[str, tuple[dict[str, Any], ...]] = {
    "afmoe": (
        {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_shared_experts": 1, **WINDOW, **BIAS},
        {"tied": True, "num_dense_layers": 2, "route_scale": 2.0},
        {"num_dense_layers": 0},
    ),
    "apertus": ({**BIAS}, {"tied": True}),
    "arcee": ({**BIASES}, {"tied": True}),
    "bamba": (
        {"mamba_proj_bias": True, **BIASES},
        {"tied": True, "mamba_conv_bias": False, "attn_layer_indices": [0, 2]},
    ),
    "cohere": ({"tied": True, "logit_scale": 0.25, **BIAS}, {}),
    "cohere2": ({"tied": True, "logit_scale": 0.25, **WINDOW, **BIAS}, {}),
    "cohere2_moe": (
        {"tied": True, "num_shared_experts": 2, **WINDOW, **BIAS},
        {"num_shared_experts": 0, "prefix_dense_intermediate_size": None, "expert_selection_fn": "sigmoid"},
        {"shared_expert_combination_strategy": "sum", "mlp_layer_types": ["sparse"] * 4},
    ),
    "cwm": ({"mlp_bias": True, **WINDOW}, {"tied": True}),
    "deepseek_v2": (
        {"routed_scaling_factor": 1.5, **BIAS},
        {"tied": True, "n_shared_experts": 1, "num_experts": 8, **IN_GROUPS},
        {"q_lora_rank": 20, "num_experts": 8, **IN_GROUPS, **BIAS},
    ),
    "deepseek_v3": (
        {"routed_scaling_factor": 1.5, **BIAS},
        {"tied": True, "n_shared_experts": 2, "n_group": 1},
        {"q_lora_rank": None, "n_group": 1},
    ),
    "dots1": (
        {"layer_types": ["full_attention", "sliding_attention"] * 2, "n_shared_experts": 2, **WINDOW, **BIAS},
        {"tied": True, "norm_topk_prob": True, "n_shared_experts": 1},
    ),
    "ernie4_5": ({"tied": True, "use_bias": True}, {}),
    "ernie4_5_moe": ({"use_bias": True}, {"tied": True, "moe_layer_start_index": 2, "moe_num_shared_experts": 1}),
    "exaone4": (
        {"sliding_window_pattern": 2, **WINDOW},
        {"tied": True, "sliding_window": None, "layer_types": ["full_attention"] * 4},
    ),
    "exaone_moe": (
        {"sliding_window_pattern": 2, **WINDOW},
        {"tied": True, "mlp_layer_types": ["dense", "sparse"] * 2, "num_shared_experts": 2},
    ),
    "falcon_h1": (
        {"tied": True, "mamba_rms_norm": True, "projectors_bias": True, **FALCON, **BIASES},
        {"mamba_conv_bias": False, "mamba_proj_bias": True},
    ),
    "flex_olmo": ({}, {"tied": True, "norm_topk_prob": True, **BIAS}),
    "gemma": ({"tied": True, **BIAS}, {}),
    "gemma4_text": (
        {"tied": True, "attention_k_eq_v": True, "final_logit_softcapping": 20.0, **WINDOW, **BIAS},
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
        {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 40, "tied": True},
        {**TINY_E2B, "tied": True, "final_logit_softcapping": 20.0, **WINDOW},
        {**TINY_E4B, **WINDOW, **BIAS},
        {"hidden_size_per_layer_input": 12},
        {**TINY_E2B, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 40},
    ),
    "gemma4_unified_text": ({"attention_k_eq_v": True, **WINDOW}, {"tied": True}),
    "glm": ({}, {"tied": True, "attention_bias": False}),
    "glm4": ({}, {"tied": True, "attention_bias": False}),
    "gpt_oss": ({"swiglu_limit": 1.0, **WINDOW}, {"tied": True, "attention_bias": False}),
    "granite_swa": (
        {"tied": True, "layer_rope_theta": [1e4, 0, 5e3, 0], "logits_scaling": 2.0, **WINDOW, **BIASES},
        MULTIPLIERS,
    ),
    "glm4_moe": (
        {"use_qk_norm": True, "routed_scaling_factor": 2.0, **BIAS},
        {"tied": True, "n_shared_experts": 2, "first_k_dense_replace": 2},
    ),
    "glm4_moe_lite": (
        {"routed_scaling_factor": 2.0, **BIAS},
        {"tied": True, "n_shared_experts": 2, "mlp_layer_types": ["dense", "dense", "sparse", "sparse"]},
    ),
    "granitemoe": (
        {**MULTIPLIERS, **BIAS},
        {"tied": True, "logits_scaling": 2.0},
    ),
    "granitemoehybrid": (
        {**OF_GRANITE, "mamba_expand": 4, "mamba_d_head": 16, "residual_multiplier": 0.22},
        {"tied": True, "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0},
        {"mamba_proj_bias": True, "mamba_conv_bias": False, "position_embedding_type": "rope", **BIAS},
        {"layer_types": ["full_attention"] * 4},
    ),
    "granitemoeshared": (
        {**MULTIPLIERS, **BIAS},
        {"tied": True, "logits_scaling": 2.0, "shared_intermediate_size": 0},
    ),
    "helium": ({**BIASES}, {"tied": True}),
    "hunyuan_v1_dense": ({**rope("dynamic", alpha=1000.0, factor=1.0), **BIAS}, {"tied": True}),
    "hunyuan_v1_moe": (
        {"moe_topk": [2] * 4, "moe_intermediate_size": [40] * 4, **rope("dynamic", alpha=1000.0, factor=1.0), **BIAS},
        {"tied": True, "head_dim": 12},
    ),
    "hyperclovax": (
        {**MULTIPLIERS, "logits_scaling": 0.25, **BIASES},
        {"tied": True, "use_post_norm": False, **MULTIPLIERS, "logits_scaling": 0.25},
    ),
    "lfm2": ({"tied": True, "conv_bias": True}, {"block_auto_adjust_ff_dim": False}),
    "lfm2_moe": (
        {"tied": True, "conv_bias": True},
        {"num_dense_layers": 1, "layer_types": ["conv", "conv", "full_attention", "conv"]},
    ),
    "internlm3": ({**BIASES}, {"tied": True}),
    "iquestcoder": ({**BIASES}, {"tied": True}),
    "llama4_text": (
        {"attn_scale": 0.3, **BIAS},
        {"tied": True, "use_qk_norm": False, "no_rope_layer_interval": 2, "num_experts_per_tok": 1},
        {"interleave_moe_layer_step": 1},
    ),
    "mellum": (
        {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            **WINDOW,
            **BIAS,
        },
        {"tied": True, "mlp_layer_types": ["sparse"] * 4, "num_mtp_layers": 1},
    ),
    "ministral": ({"layer_types": ["sliding_attention", "full_attention"] * 2, **WINDOW}, {"tied": True}),
    "ministral3": (
        rope("yarn", factor=16.0, original_max_position_embeddings=4, llama_4_scaling_beta=0.1),
        {"tied": True},
    ),
    "minimax_m2": ({"rotary_dim": 4}, {"tied": True}),
    "nemotron_h": (
        {"layers_block_type": [*MIXED, "moe"], "use_bias": True, "mlp_bias": True},
        {"layers_block_type": [*MIXED[:3], "moe"], "num_local_experts": 8, "n_group": 2},
        {"layers_block_type": [*MIXED, "moe"], "moe_latent_size": 24, "mlp_bias": True},
        {"use_bias": True, "mlp_bias": True},
        {"layers_block_type": ["linear_attention", "full_attention", "linear_attention", "mlp", "full_attention"]},
        {"use_conv_bias": False},
    ),
    "olmo3": (
        {"rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}, **WINDOW, **BIAS},
        {"tied": True},
    ),
    "olmoe": ({}, {"tied": True, **BIAS}),
    "opt": ({"tied": True}, {"enable_bias": False}),
    "phi": ({}, {"tied": True}),
    "phimoe": ({"lm_head_bias": True, **BIAS}, {"tied": True, **LONGROPE}),
    "qwen2_moe": ({"norm_topk_prob": True}, {"tied": True, "qkv_bias": False}),
    "qwen3_5_moe_text": ({**BIAS}, {"tied": True}),
    "qwen3_5_text": (
        {"tied": True, **BIAS},
        {"layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"]},
    ),
    "qwen3_next": ({"mlp_only_layers": [0, 3], **BIAS}, {"tied": True, "mlp_only_layers": [1]}, {}),
    "seed_oss": ({"mlp_bias": True}, {"tied": True, "attention_bias": False}),
    "solar_open": ({"n_shared_experts": 2, **BIAS}, {"tied": True}),
    "stablelm": ({"use_qkv_bias": True}, {"tied": True}),
    "vaultgemma": ({"tied": True, **WINDOW, **BIAS}, {}),
}
"""Variants of families that are tried as a whole: the first of each always, the others when there is time."""


NOTHING_NEW = {
    "arcee", "cohere", "cwm", "deepseek_v2", "dots1", "ernie4_5", "exaone4", "exaone_moe", "flex_olmo", "gemma",
    "gemma4_unified_text", "glm", "glm4_moe", "glm4_moe_lite", "granite_swa", "granitemoeshared", "helium",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "internlm3", "iquestcoder", "lfm2_moe", "llama4_text", "mellum", "minimax_m2",
    "ministral", "ministral3", "olmoe", "phimoe", "qwen3_5_moe_text", "seed_oss", "solar_open",
}  # fmt: skip
"""Families whose tables hold nothing that those of others do not hold, too; they are tried when there is time.

Llama 4's does, and has a test of its own below.
"""


NEW_IN_LATER = {("gemma4_text", 3), ("hyperclovax", 1)}
"""Further variants that are tried always, by their number."""

STEPS = (check_steps, check_axes, check_distils)
STEPPED = ("gpt2", "llama", "mixtral")
"""Families that always take the longer steps, the others when there is time; the steps have tests of their own."""


def _ties(name: str) -> bool:
    """Whether models of a family share embedding and output head unless they say otherwise."""
    return bool(AutoConfig.for_model(name).tie_word_embeddings)


def _short(value: Any) -> str:
    return str(value["rope_type"] if isinstance(value, dict) else value)


KINDS = [
    pytest.param(name, changes, id="-".join([name, *(f"{key}={_short(value)}" for key, value in changes.items())]))
    for name in layouts()
    if name not in WHOLE
    for changes in ({"tied": False}, {"tied": True}, *VARIANTS.get(name, ()))
]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Subject]:
    made: dict[str, Subject] = {}

    def make(name: str, changes: dict[str, Any]) -> Subject:
        key = f"{name} {changes}"
        if key not in made:
            made[key] = Subject.make(layouts()[name], tiny_config(name, **changes), tmp_path_factory.mktemp(name))
        return made[key]

    return make


def _repeats_another(changes: dict[str, Any], check: Callable[[Subject], None]) -> bool:
    """Whether a long check looks again at rows that it has seen: a tied or bias-free table has only fewer of them."""
    fewer = changes.get("tied") or False in [value for name, value in changes.items() if name != "tied"]
    return check in (check_units, check_masked_teacher) and bool(fewer)


@pytest.mark.parametrize(
    ("name", "changes", "check"),
    [
        pytest.param(
            *kind.values,
            check,
            id=f"{kind.id}-{check.__name__}",
            marks=[pytest.mark.slow] if _repeats_another(kind.values[1], check) else [],
        )
        for kind in KINDS
        for check in CHECKS
        if check is not check_written and (check is not check_units or "rope_parameters" not in kind.values[1])
    ],
)
def test_the_table_is_right(
    subject: Callable[..., Subject], name: str, changes: dict[str, Any], check: Callable[[Subject], None]
) -> None:
    check(subject(name, changes))


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        pytest.param(name, tied, marks=[] if name not in WHOLE and tied == _ties(name) else pytest.mark.slow)
        for name, layout in layouts().items()
        for tied in layout.requires.get("tie_word_embeddings", (False, True))
    ],
)
def test_a_student_loads_in_stock_transformers_and_generates(
    subject: Callable[..., Subject], name: str, tied: bool
) -> None:
    check_written(subject(name, {"tied": tied}))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param(
            name,
            changes,
            id=f"{name}-{number}",
            marks=[pytest.mark.slow] if name in NOTHING_NEW or (number and (name, number) not in NEW_IN_LATER) else [],
        )
        for name, variants in WHOLE.items()
        for number, changes in enumerate(variants)
    ],
)
def test_a_table_is_right_and_works(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    subject = Subject.make(layouts()[name], tiny_config(name, **changes), tmp_path)
    for check in (*CHECKS, *USES):
        if check is not check_written and check not in STEPS:
            check(subject)


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_what_layers_read_beside_hidden_states_goes_along_with_every_step(tmp_path: Path, number: int) -> None:
    subject = Subject.make(
        layouts()["gemma4_text"], tiny_config("gemma4_text", **WHOLE["gemma4_text"][number]), tmp_path
    )
    for check in (check_written, *STEPS):
        check(subject)


def test_llama_4_attends_in_chunks_and_turns_up_queries_by_where_they_stand(tmp_path: Path) -> None:
    changes = {"attention_chunk_size": 5, "floor_scale": 4, "attn_scale": 0.5}
    subject = Subject.make(layouts()["llama4_text"], tiny_config("llama4_text", **changes), tmp_path)
    for check in (check_nothing_pruned, check_masked_teacher, check_scores, check_depth):
        check(subject)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(name, check, marks=pytest.mark.slow if check in STEPS and name not in STEPPED else [])
        for name in layouts()
        for check in USES
        if name not in WHOLE or check in STEPS
    ],
)
def test_every_step_works_with_a_family(
    tmp_path: Path, subject: Callable[..., Subject], name: str, check: Callable[[Subject], None]
) -> None:
    changes = WHOLE[name][0] if name in WHOLE else {"tied": _ties(name)}
    check(replace(subject(name, changes), folder=tmp_path))


def test_the_readmes_example_is_a_family_that_passes(tmp_path: Path) -> None:
    readme = Path(minitron_nas.families.__file__).with_name("README.md").read_text(encoding="utf-8")
    table = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "LAYOUT = " in block)
    names: dict[str, Any] = {}
    exec(table, names)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 6}
    config = AutoConfig.for_model("jais2", vocab_size=320, num_key_value_heads=2, head_dim=8, **sizes)
    check_family(names["LAYOUT"], config, tmp_path / "family")
    check_use(names["LAYOUT"], config, tmp_path / "use")
