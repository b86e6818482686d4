"""The family tables against real transformers models and published totals."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from minitron_nas.architecture.config import architecture_of, with_sizes
from minitron_nas.architecture.costs import (
    count_embedding_parameters,
    forward_flops_per_token,
    kv_cache_bytes_per_token,
    state_bytes_per_sequence,
)
from minitron_nas.architecture.kinds import gives
from minitron_nas.architecture.spec import EXPERT_FIELDS, Architecture
from minitron_nas.errors import InvalidArchitectureError, MinitronNasError, UnknownFamilyError
from minitron_nas.families import catalog
from minitron_nas.families.catalog import count_parameters, layout_of, layouts
from minitron_nas.space.axes import load_space

FAMILIES = ("llama", "mistral", "nemotron", "qwen2")
WITH_BIASES = ("llama", "nemotron")
SIZES: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
}
VARIANTS = [
    pytest.param(family, {"tie_word_embeddings": tied}, id=f"{family}-{'tied' if tied else 'untied'}")
    for family in FAMILIES
    for tied in (False, True)
] + [
    pytest.param(family, biases, id="-".join((family, *biases)))
    for family in WITH_BIASES
    for biases in (
        {"attention_bias": True},
        {"mlp_bias": True},
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    )
]


def meta_model(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_these_are_the_families() -> None:
    assert len(layouts()) == 72
    assert set(FAMILIES) <= set(layouts())


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_parameters_are_those_of_the_real_model(family: str, changes: dict[str, bool]) -> None:
    config = AutoConfig.for_model(family, **SIZES, **changes)
    expected = sum(parameter.numel() for parameter in meta_model(config).parameters())
    assert count_parameters(config) == count_parameters(config.to_dict()) == expected


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_the_table_names_every_tensor_of_the_real_model_with_its_shape(family: str, changes: dict[str, bool]) -> None:
    config = AutoConfig.for_model(family, **SIZES, **changes)
    architecture = architecture_of(config.to_dict(), layout_of(family))
    real = {name: tuple(parameter.shape) for name, parameter in meta_model(config).named_parameters()}
    table = {name: row.shape(architecture) for name, row, *_ in layout_of(family).tensors(architecture)}
    assert table == real


@settings(max_examples=25)
@given(
    family=st.sampled_from(FAMILIES),
    layers=st.integers(1, 3),
    groups=st.integers(1, 4),
    heads_per_group=st.integers(1, 4),
    hidden_per_head=st.integers(1, 9),
    neurons=st.integers(1, 99),
    head_dim=st.integers(1, 8).map(lambda half: 2 * half),
    vocab_size=st.integers(4, 99),
    tied=st.booleans(),
)
def test_any_shape_counts_as_the_real_model(
    family: str,
    layers: int,
    groups: int,
    heads_per_group: int,
    hidden_per_head: int,
    neurons: int,
    head_dim: int,
    vocab_size: int,
    tied: bool,
) -> None:
    heads = groups * heads_per_group
    architecture = Architecture(
        family, layers, heads * hidden_per_head, neurons, heads, groups, head_dim, vocab_size, tied
    )
    fields = architecture.to_dict()
    model = meta_model(AutoConfig.for_model(fields.pop("model_type"), **fields, pad_token_id=0))
    assert count_parameters(architecture) == sum(parameter.numel() for parameter in model.parameters())


LLAMA_8B = Architecture("llama", 32, 4096, 14336, 32, 8, 128, 128256)
NEMO_12B = Architecture("mistral", 40, 5120, 14336, 32, 8, 128, 131072)
NEMOTRON_15B = Architecture("nemotron", 32, 6144, 24576, 48, 8, 128, 256000)


@pytest.mark.parametrize(
    ("architecture", "total"),
    [
        pytest.param(LLAMA_8B, 8_030_261_248, id="Llama-3.1-8B"),
        pytest.param(
            LLAMA_8B.reshaped({"hidden_size": 3072, "intermediate_size": 9216}),
            4_512_746_496,
            id="Llama-3.1-Minitron-4B-Width",
        ),
        pytest.param(LLAMA_8B.reshaped({"num_hidden_layers": 16}), 4_540_469_248, id="Llama-3.1-Minitron-4B-Depth"),
        pytest.param(
            NEMO_12B.reshaped({"hidden_size": 4096, "intermediate_size": 11520}),
            8_414_105_600,
            id="Mistral-NeMo-Minitron-8B",
        ),
        pytest.param(
            NEMOTRON_15B.reshaped({"hidden_size": 4096, "intermediate_size": 16384}),
            8_271_699_968,
            id="Minitron-8B",
        ),
    ],
)
def test_published_models_have_their_published_totals(architecture: Architecture, total: int) -> None:
    assert count_parameters(architecture) == total


NEMOTRON_NANO_9B = {
    "model_type": "nemotron_h", "vocab_size": 131072, "hidden_size": 4480, "intermediate_size": 15680,
    "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "mamba_num_heads": 128, "mamba_head_dim": 80,
    "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4,
    "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
}  # fmt: skip
FALCON_H1_05B = {
    "model_type": "falcon_h1", "vocab_size": 32784, "hidden_size": 1024, "intermediate_size": 2048,
    "num_hidden_layers": 36, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "mamba_d_ssm": 1536,
    "mamba_n_heads": 24, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_d_conv": 4,
    "tie_word_embeddings": False,
}  # fmt: skip
LFM2 = {
    "model_type": "lfm2", "num_hidden_layers": 16, "num_key_value_heads": 8, "vocab_size": 65536,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
}  # fmt: skip
LFM2_8B = {
    "model_type": "lfm2_moe", "num_hidden_layers": 24, "num_key_value_heads": 8, "head_dim": 64,
    "layer_types": ["full_attention" if layer in (2, 6, 10, 14, 18, 21) else "conv" for layer in range(24)],
}  # fmt: skip
LFM2_350M = {**LFM2, "hidden_size": 1024, "block_ff_dim": 6656, "num_attention_heads": 16, "head_dim": 64}
LFM2_1_2B = {**LFM2, "hidden_size": 2048, "block_ff_dim": 12288, "num_attention_heads": 32, "head_dim": 64}


GEMMA_4_31B = {
    "model_type": "gemma4_text", "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 60,
    "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 256, "global_head_dim": 512,
    "num_global_key_value_heads": 4, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0,
}  # fmt: skip


def test_gemma_4_31b_has_its_total_and_two_sizes_of_cache() -> None:
    content, layout = AutoConfig.for_model(**GEMMA_4_31B).to_dict(), layout_of("gemma4_text")
    shape = architecture_of(content, layout)
    assert count_parameters(content) == 30_697_345_280
    assert kv_cache_bytes_per_token(shape, layout) == 2 * (50 * 2 * 16 * 256 + 10 * 2 * 4 * 512)
    fewer = shape.reshaped({"num_hidden_layers": 42})  # of whole periods
    assert kv_cache_bytes_per_token(fewer, layout) == 2 * (35 * 2 * 16 * 256 + 7 * 2 * 4 * 512)
    student = AutoConfig.for_model(**with_sizes(content, fewer.reshaped({"hidden_size": 4096}), layout))
    assert count_parameters(student) == sum(parameter.numel() for parameter in meta_model(student).parameters())


def test_gemma_4_26b_has_its_total_and_half_of_its_experts_are_a_student() -> None:
    experts = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
    sizes = {"hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30, "num_attention_heads": 16}
    heads = {"num_key_value_heads": 8, "num_global_key_value_heads": 2}
    content = AutoConfig.for_model(**{**GEMMA_4_31B, **sizes, **heads, **experts}).to_dict()
    layout = layout_of("gemma4_text")
    shape = architecture_of(content, layout)
    assert count_parameters(content) == 25_233_141_760
    assert kv_cache_bytes_per_token(shape, layout) == 2 * (25 * 2 * 8 * 256 + 5 * 2 * 2 * 512)
    student = AutoConfig.for_model(**with_sizes(content, shape.reshaped({"num_experts": 64}), layout))
    assert count_parameters(student) == sum(parameter.numel() for parameter in meta_model(student).parameters())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_bidirectional_attention": "all"}, "tokens that see those after them"),
        ({"num_kv_shared_layers": 56}, "num_kv_shared_layers=56 leaves no layer of kind 'full_attention'"),
        (
            {"num_kv_shared_layers": 1, "model_type": "gemma4_unified_text"},
            "needs num_kv_shared_layers=0: no such model has layers that read the keys and values of others",
        ),
    ],
)
def test_a_gemma_4_that_its_table_cannot_carry_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArchitectureError, match=reason):
        count_parameters({**AutoConfig.for_model(**GEMMA_4_31B).to_dict(), **changes})


GEMMA_4_E2B = {
    "model_type": "gemma4_text", "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512,
    "num_kv_shared_layers": 20, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 256,
    "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7,
}  # fmt: skip
GEMMA_4_E4B = {
    **GEMMA_4_E2B, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 42, "num_key_value_heads": 2,
    "num_kv_shared_layers": 18, "use_double_wide_mlp": False,
    "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 7,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "total", "own_layers", "sharing"),
    [
        pytest.param(GEMMA_4_E2B, 4_628_569_344, (12, 3), (16, 4), id="E2B"),
        pytest.param(GEMMA_4_E4B, 7_463_013_376, (20, 4), (15, 3), id="E4B"),
    ],
)
def test_gemma_4_e_has_its_total_and_keeps_the_keys_of_the_layers_that_have_them(
    config: dict[str, Any], total: int, own_layers: tuple[int, int], sharing: tuple[int, int]
) -> None:
    content, layout = AutoConfig.for_model(**config).to_dict(), layout_of("gemma4_text")
    shape, model = architecture_of(content, layout), meta_model(AutoConfig.for_model(**config))
    assert count_parameters(content) == total == sum(parameter.numel() for parameter in model.parameters())
    assert count_embedding_parameters(shape, layout) == sum(
        parameter.numel() for name, parameter in model.named_parameters() if "embed_tokens" in name
    )
    width = 2 * config["num_key_value_heads"]
    assert kv_cache_bytes_per_token(shape, layout) == 2 * width * (own_layers[0] * 256 + own_layers[1] * 512)
    attended = 8 * ((own_layers[0] + sharing[0]) * 256 + (own_layers[1] + sharing[1]) * 512)
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    assert forward_flops_per_token(shape, layout, 100) == 2 * linear + 4 * attended * 100


@pytest.mark.parametrize("config", [GEMMA_4_E2B, GEMMA_4_E4B], ids=["E2B", "E4B"])
def test_a_gemma_4_e_of_any_depth_counts_as_the_real_model_and_keeps_the_layers_whose_keys_are_read(
    config: dict[str, Any],
) -> None:
    content, layout = AutoConfig.for_model(**config).to_dict(), layout_of("gemma4_text")
    source = architecture_of(content, layout)
    for layers in (30, 20, 11, 6, 4, 2):
        shape = source.reshaped({"num_hidden_layers": layers, "hidden_size": 1024, "intermediate_size": 2048})
        student = AutoConfig.for_model(**with_sizes(content, shape, layout))
        assert count_parameters(shape) == sum(parameter.numel() for parameter in meta_model(student).parameters())
        assert {kind for kind in source.kinds if gives(kind)} <= {*shape.kinds}


def test_a_size_of_a_kind_of_layers_that_transformers_has_not_filled_in_is_refused() -> None:
    with pytest.raises(InvalidArchitectureError, match=r"full_attention\.head_dim=None must be an integer"):
        count_parameters({**GEMMA_4_31B, "vocab_size": 262144, "layer_types": ["full_attention"] * 60})


@pytest.mark.parametrize(
    ("config", "total", "layers_with_cache"),
    [
        pytest.param(LFM2_350M, 354_483_968, 6, id="LFM2-350M"),
        pytest.param(LFM2_1_2B, 1_170_340_608, 6, id="LFM2-1.2B"),
        pytest.param(LFM2_8B, 8_339_929_856, 6, id="LFM2-8B-A1B"),
        pytest.param(NEMOTRON_NANO_9B, 8_888_227_328, 4, id="Nemotron-Nano-9B-v2"),
        pytest.param(FALCON_H1_05B, 521_411_104, 36, id="Falcon-H1-0.5B"),
    ],
)
def test_published_hybrids_have_their_published_totals(
    config: dict[str, Any], total: int, layers_with_cache: int
) -> None:
    content = AutoConfig.for_model(**config).to_dict()
    layout = layout_of(config["model_type"])
    shape = architecture_of(content, layout)
    assert count_parameters(content) == total
    per_layer = 2 * config["num_key_value_heads"] * config["head_dim"] * 2
    assert kv_cache_bytes_per_token(shape, layout) == layers_with_cache * per_layer


def test_nemotron_nano_keeps_73_mb_of_a_sequence_and_a_student_less() -> None:
    shape, layout = load_space("nemotron-nano-9b-v2").source_architecture(), layout_of("nemotron_h")
    convolved = 4 * (128 * 80 + 2 * 8 * 128)
    assert state_bytes_per_sequence(shape, layout) == 2 * 27 * (128 * 80 * 128 + convolved) == 73_433_088
    student = shape.reshaped({"mamba_num_heads": 96, "mamba_head_dim": 64, "num_hidden_layers": 42})
    convolved = 4 * (96 * 64 + 2 * 8 * 128)
    assert state_bytes_per_sequence(student, layout) == 2 * 20 * (96 * 64 * 128 + convolved)


def test_a_hybrid_of_any_depth_counts_as_the_real_model() -> None:
    config = AutoConfig.for_model(**{**NEMOTRON_NANO_9B, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 100})
    source = architecture_of(config.to_dict(), layout_of("nemotron_h"))
    for layers in (55, 40, 28, 7, 3):
        shape = source.reshaped({"num_hidden_layers": layers})
        student = AutoConfig.for_model(**with_sizes(config.to_dict(), shape, layout_of("nemotron_h")))
        assert student.num_hidden_layers == layers
        assert count_parameters(shape) == sum(parameter.numel() for parameter in meta_model(student).parameters())


def test_a_dense_nemotron_has_nothing_of_the_experts_that_its_config_speaks_of() -> None:
    content, layout = AutoConfig.for_model(**NEMOTRON_NANO_9B).to_dict(), layout_of("nemotron_h")
    assert content["n_routed_experts"] == 8
    shape = architecture_of(content, layout)
    assert shape == load_space("nemotron-nano-9b-v2").source_architecture()
    assert "num_experts" not in shape.sizes()
    assert {*EXPERT_FIELDS}.isdisjoint(layout.shape_fields_of(shape))
    student = with_sizes(content, shape.reshaped({"hidden_size": 4096}), layout)
    assert {key for key in content if student[key] != content[key]} == {"hidden_size"}


NEMOTRON_SUPER = {
    **NEMOTRON_NANO_9B,
    "hybrid_override_pattern": f"{3 * 'MEMEMEM*E'}{4 * 'MEMEMEMEM*E'}MEMEMEM*EMEMEMEME",
    "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 2, "mamba_num_heads": 128,
    "mamba_head_dim": 64, "n_routed_experts": 512, "num_experts_per_tok": 22, "moe_intermediate_size": 2688,
    "moe_shared_expert_intermediate_size": 5376, "moe_latent_size": 1024, "num_nextn_predict_layers": 1,
}  # fmt: skip


def test_nemotron_3_super_has_its_total_and_a_student_predicts_one_token_at_a_time() -> None:
    content, layout = AutoConfig.for_model(**NEMOTRON_SUPER).to_dict(), layout_of("nemotron_h")
    shape = architecture_of(content, layout)
    assert shape.num_hidden_layers == 88
    assert count_parameters(content) == 120_668_687_360
    student = AutoConfig.for_model(**with_sizes(content, shape.reshaped({"num_experts": 256}), layout))
    assert student.num_nextn_predict_layers == 0
    assert count_parameters(student) == sum(parameter.numel() for parameter in meta_model(student).parameters())


def test_layers_of_a_kind_that_no_row_describes_are_refused() -> None:
    config = {**AutoConfig.for_model("nemotron_h").to_dict(), "layers_block_type": ["linear_attention", "retention"]}
    with pytest.raises(
        InvalidArchitectureError, match=r"layers of kind 'retention' are not described .* knows full_attention"
    ):
        count_parameters(config)


def test_a_fixed_size_that_is_no_number_is_refused() -> None:
    content = {**AutoConfig.for_model(**FALCON_H1_05B).to_dict(), "mamba_d_state": None}
    with pytest.raises(InvalidArchitectureError, match=r"mamba_d_state=None must be an integer, as a fixed size"):
        count_parameters(content)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mamba_n_heads", None, "the config has no 'mamba_n_heads'"),
        ("mamba_n_groups", None, "the config has no 'mamba_n_groups'"),
        ("mamba_n_heads", 0, "mamba_num_heads=0 must be an integer of at least 1"),
        ("mamba_d_head", 0, "mamba_head_dim=0 must be an integer of at least 1"),
        ("mamba_d_head", "auto", "mamba_head_dim='auto' must be an integer of at least 1"),
        ("mamba_n_groups", 0, "mamba_num_groups=0 must be an integer of at least 1"),
        ("mamba_n_groups", -1, "mamba_num_groups=-1 must be an integer of at least 1"),
        ("mamba_n_groups", True, "mamba_num_groups=True must be an integer of at least 1"),
        ("mamba_n_groups", "1", "mamba_num_groups='1' must be an integer of at least 1"),
        ("mamba_n_groups", 5, "mamba_num_heads=24 is not a multiple of the mixers' 5 groups"),
    ],
)
def test_a_mixer_has_heads_channels_and_groups(key: str, value: Any, message: str) -> None:
    content = {**AutoConfig.for_model(**FALCON_H1_05B).to_dict(), key: value}
    with pytest.raises(InvalidArchitectureError, match=message):
        count_parameters(content)


@pytest.mark.parametrize(
    ("family", "sizes", "total"),
    [
        pytest.param("mixtral", {"vocab_size": 32000}, 46_702_792_704, id="Mixtral-8x7B"),
        pytest.param(
            "qwen3_moe",
            {"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128},
            30_532_122_624,
            id="Qwen3-30B-A3B",
        ),
        pytest.param("gpt_oss", {}, 116_829_156_672, id="gpt-oss-120b"),
        pytest.param("gpt_oss", {"num_hidden_layers": 24, "num_local_experts": 32}, 20_914_757_184, id="gpt-oss-20b"),
        pytest.param(
            "granitemoe",
            {
                "num_hidden_layers": 32, "hidden_size": 1536, "intermediate_size": 512, "num_attention_heads": 24,
                "num_key_value_heads": 8, "num_local_experts": 40, "num_experts_per_tok": 8, "vocab_size": 49155,
                "tie_word_embeddings": True,
            },
            3_298_793_472,
            id="Granite-3.1-3B-A800M",
        ),
        pytest.param("qwen2_moe", {}, 14_315_784_192, id="Qwen1.5-MoE-A2.7B"),
        pytest.param("glm4_moe", {"head_dim": 128, "attention_bias": True}, 106_852_245_504, id="GLM-4.5-Air"),
        pytest.param("deepseek_v3", {}, 671_026_404_352, id="DeepSeek-V3"),
        pytest.param("minimax_m2", {}, 228_689_748_992, id="MiniMax-M2"),
        pytest.param("glm4_moe_lite", {}, 29_943_390_976, id="GLM-4.7-Flash"),
        pytest.param("ernie4_5_moe", {}, 21_825_437_888, id="ERNIE-4.5-21B-A3B"),
        pytest.param("flex_olmo", {}, 33_270_665_216, id="FlexOlmo-7x7B-1T"),
        pytest.param("solar_open", {}, 102_651_793_408, id="Solar-Open-100B"),
        pytest.param("phimoe", {"attention_bias": True, "lm_head_bias": True}, 41_873_153_344, id="Phi-3.5-MoE"),
        pytest.param(
            "deepseek_v2",
            {
                "num_hidden_layers": 27, "hidden_size": 2048, "intermediate_size": 10944, "num_attention_heads": 16,
                "first_k_dense_replace": 1, "num_experts_per_tok": 6, "moe_intermediate_size": 1408,
                "q_lora_rank": None,
            },
            15_706_484_224,
            id="DeepSeek-V2-Lite",
        ),
        pytest.param(
            "deepseek_v3",
            {
                "num_hidden_layers": 27, "hidden_size": 2048, "intermediate_size": 11264, "num_attention_heads": 16,
                "num_key_value_heads": 16, "first_k_dense_replace": 1, "num_experts_per_tok": 6, "n_group": 1,
                "topk_group": 1, "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
                "q_lora_rank": None, "vocab_size": 163840,
            },
            15_960_108_544,
            id="Moonlight-16B-A3B",
        ),
        pytest.param(
            "deepseek_v2",
            {
                "num_hidden_layers": 60, "hidden_size": 5120, "intermediate_size": 12288, "num_attention_heads": 128,
                "num_key_value_heads": 128, "first_k_dense_replace": 1, "num_experts_per_tok": 6, "n_group": 8,
                "topk_group": 3, "moe_intermediate_size": 1536, "n_routed_experts": 160, "n_shared_experts": 2,
                "q_lora_rank": 1536, "topk_method": "group_limited_greedy",
            },
            235_741_434_880,
            id="DeepSeek-V2",
        ),
        pytest.param(
            "dots1",
            {
                "hidden_size": 4096, "first_k_dense_replace": 1, "n_routed_experts": 128, "num_experts_per_tok": 6,
                "n_shared_experts": 2,
            },
            142_774_373_888,
            id="dots.llm1",
        ),
        pytest.param(
            "hunyuan_v1_moe",
            {
                "intermediate_size": 3072, "num_key_value_heads": 8, "head_dim": 128, "num_experts": 64,
                "moe_topk": [8] * 32, "vocab_size": 128167, "tie_word_embeddings": True,
            },
            80_393_183_232,
            id="Hunyuan-A13B",
        ),
        pytest.param(
            "afmoe",
            {
                "num_attention_heads": 32, "num_key_value_heads": 4, "moe_intermediate_size": 1024, "num_experts": 128,
                "num_dense_layers": 2, "num_experts_per_tok": 8, "num_shared_experts": 1, "mup_enabled": True,
            },
            26_123_974_400,
            id="Trinity-Mini",
        ),
        pytest.param(
            "afmoe",
            {
                "num_hidden_layers": 60, "hidden_size": 3072, "intermediate_size": 12288, "num_attention_heads": 48,
                "num_key_value_heads": 8, "moe_intermediate_size": 3072, "num_experts": 256, "num_dense_layers": 6,
                "num_experts_per_tok": 4, "num_shared_experts": 1, "mup_enabled": True,
            },
            398_635_286_016,
            id="Trinity-Large",
        ),
        pytest.param("mellum", {}, 12_149_923_072, id="Mellum-2-12B"),
        pytest.param("cohere2_moe", {}, 190_004_928_512, id="cohere2_moe, defaults"),
        pytest.param(
            "cohere2_moe",
            {"num_shared_experts": 2, "first_k_dense_replace": 3, "prefix_dense_intermediate_size": 24576},
            219_499_077_632,
            id="cohere2_moe, dense layers and shared experts",
        ),
        pytest.param("granitemoeshared", {}, 37_039_116_288, id="granitemoeshared, defaults"),
        pytest.param(
            "granitemoeshared", {"shared_intermediate_size": 1024}, 37_441_769_472, id="granitemoeshared, a shared FFN"
        ),
        pytest.param("qwen3_5_moe_text", {}, 34_660_610_688, id="Qwen3.5-35B-A3B"),
        pytest.param("qwen3_next", {}, 79_674_391_296, id="Qwen3-Next-80B-A3B"),
        pytest.param("llama4_text", {}, 107_769_861_120, id="Llama-4-Scout, text"),
        pytest.param(
            "llama4_text",
            {"num_local_experts": 128, "interleave_moe_layer_step": 2},
            400_711_848_960,
            id="Llama-4-Maverick, text",
        ),
    ],
)  # fmt: skip
def test_models_with_experts_have_the_totals_of_the_real_ones(family: str, sizes: dict[str, Any], total: int) -> None:
    assert count_parameters(AutoConfig.for_model(family, **sizes)) == total


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("afmoe", {"mup_enabled": False}, "needs mup_enabled=True: embeddings are multiplied by the square root of"),
        ("cohere2_moe", {"rms_norm_eps": 1e-5}, "needs rms_norm_eps=None: without it norms are LayerNorms"),
        ("deepseek_v2", {"mlp_bias": True}, "needs mlp_bias=False"),
        (
            "ernie4_5_moe",
            {"moe_layer_end_index": 20},
            "moe_layer_end_index=20 must be the last of the 28 layers, 27, or",
        ),
        ("ernie4_5_moe", {"moe_layer_interval": 2}, "needs moe_layer_interval=1"),
        ("hunyuan_v1_moe", {"moe_topk": [1] * 31 + [2]}, "must be one number, or the same one for every layer"),
        ("opt", {"do_layer_norm_before": False}, "needs do_layer_norm_before=True"),
    ],
)
def test_a_model_that_its_table_cannot_carry_is_refused(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArchitectureError, match=message):
        count_parameters(AutoConfig.for_model(family, **changes))


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UnknownFamilyError,
        match="model type 'bloom' is no known family; .*ls families` .*draft-family MODEL` prints .* how to add one",
    ) as caught:
        layout_of("bloom")
    assert isinstance(caught.value, MinitronNasError)
    assert isinstance(caught.value, ValueError)


def test_a_config_of_an_unknown_family_is_refused_before_its_fields_are_read() -> None:
    with pytest.raises(UnknownFamilyError, match="model type 'bloom'"):
        count_parameters({"model_type": "bloom", "n_embed": 768})


def test_a_config_without_a_family_is_refused() -> None:
    with pytest.raises(UnknownFamilyError, match=r"model type '\(none\)'"):
        count_parameters(SIZES)


def nemotron_total(layers: int, hidden: int, heads: int, neurons: int) -> int:
    """Embeddings and output head, then per layer the FFN, queries and output, keys and values; gains and biases."""
    vocab, width, groups = 256_000, 128, 8
    matrices = 2 * hidden * neurons + 2 * hidden * heads * width + 2 * hidden * groups * width
    return 2 * vocab * hidden + layers * (matrices + 4 * hidden) + 2 * hidden


@pytest.mark.parametrize(
    ("hidden", "heads", "neurons", "billions"),
    [(6144, 48, 24576, 15.6), (4096, 48, 16384, 8.27), (3072, 24, 9216, 4.19)],
    ids=["Nemotron-4-15B", "Minitron-8B", "Minitron-4B"],
)
def test_the_papers_own_models_have_their_totals(hidden: int, heads: int, neurons: int, billions: float) -> None:
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": neurons}
    total = count_parameters(NEMOTRON_15B.reshaped(sizes))
    assert total == nemotron_total(32, hidden, heads, neurons)
    assert total / 1e9 == pytest.approx(billions, abs=0.06)


@pytest.mark.parametrize(
    ("config", "total"),
    [
        pytest.param(
            {
                "model_type": "gpt2",
                "n_embd": 768,
                "n_layer": 12,
                "n_head": 12,
                "n_positions": 1024,
                "vocab_size": 50257,
            },
            124_439_808,
            id="GPT-2",
        ),
        pytest.param(
            {
                "model_type": "opt",
                "num_hidden_layers": 32,
                "hidden_size": 4096,
                "ffn_dim": 16384,
                "num_attention_heads": 32,
                "max_position_embeddings": 2048,
                "vocab_size": 50272,
            },
            6_658_473_984,
            id="OPT-6.7B",
        ),
        pytest.param(
            {
                "model_type": "hyperclovax",
                "num_hidden_layers": 38,
                "hidden_size": 6144,
                "intermediate_size": 14336,
                "num_attention_heads": 48,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 110592,
            },
            14_748_112_896,
            id="HyperCLOVAX-SEED-Think-14B",
        ),
        pytest.param(
            {
                "model_type": "apertus",
                "num_hidden_layers": 32,
                "hidden_size": 4096,
                "intermediate_size": 21504,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "vocab_size": 131072,
            },
            8_053_338_176,
            id="Apertus-8B",
        ),
        pytest.param(
            {
                "model_type": "mixtral",
                "num_hidden_layers": 32,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
                "vocab_size": 32000,
            },
            46_702_792_704,
            id="Mixtral-8x7B",
        ),
        pytest.param(
            {
                "model_type": "gpt_neox",
                "num_hidden_layers": 24,
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_attention_heads": 16,
                "vocab_size": 50304,
            },
            1_414_647_808,
            id="Pythia-1.4B",
        ),
        pytest.param(
            {
                "model_type": "gemma",
                "num_hidden_layers": 18,
                "hidden_size": 2048,
                "intermediate_size": 16384,
                "num_attention_heads": 8,
                "num_key_value_heads": 1,
                "head_dim": 256,
                "vocab_size": 256000,
            },
            2_506_172_416,
            id="Gemma-2B",
        ),
        pytest.param(
            {
                "model_type": "phi",
                "num_hidden_layers": 32,
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_attention_heads": 32,
                "vocab_size": 51200,
            },
            2_779_683_840,
            id="Phi-2",
        ),
        pytest.param(
            {
                "model_type": "stablelm",
                "num_hidden_layers": 32,
                "hidden_size": 2560,
                "intermediate_size": 6912,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "vocab_size": 50304,
            },
            2_795_443_200,
            id="StableLM-3B-4E1T",
        ),
        pytest.param(
            {
                "model_type": "cohere",
                "num_hidden_layers": 40,
                "hidden_size": 8192,
                "intermediate_size": 22528,
                "num_attention_heads": 64,
                "num_key_value_heads": 64,
                "vocab_size": 256000,
            },
            34_980_831_232,
            id="Command-R",
        ),
        pytest.param(
            {
                "model_type": "cohere2",
                "num_hidden_layers": 32,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "vocab_size": 256000,
            },
            8_028_033_024,
            id="Command-R7B",
        ),
        pytest.param(
            {
                "model_type": "glm",
                "num_hidden_layers": 40,
                "hidden_size": 4096,
                "intermediate_size": 13696,
                "num_attention_heads": 32,
                "num_key_value_heads": 2,
                "vocab_size": 151552,
                "attention_bias": True,
            },
            9_399_951_360,
            id="GLM-4-9B",
        ),
        pytest.param(
            {
                "model_type": "glm4",
                "num_hidden_layers": 40,
                "hidden_size": 4096,
                "intermediate_size": 13696,
                "num_attention_heads": 32,
                "num_key_value_heads": 2,
                "vocab_size": 151552,
            },
            9_400_279_040,
            id="GLM-4-9B-0414",
        ),
        pytest.param(
            {
                "model_type": "ernie4_5",
                "num_hidden_layers": 18,
                "hidden_size": 1024,
                "intermediate_size": 3072,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "head_dim": 128,
                "vocab_size": 103424,
                "use_bias": False,
            },
            360_748_032,
            id="ERNIE-4.5-0.3B",
        ),
        pytest.param(
            {
                "model_type": "seed_oss",
                "num_hidden_layers": 64,
                "hidden_size": 5120,
                "intermediate_size": 27648,
                "num_attention_heads": 80,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 155136,
                "attention_out_bias": False,
            },
            36_151_104_512,
            id="Seed-OSS-36B",
        ),
        pytest.param(
            {
                "model_type": "olmo3",
                "num_hidden_layers": 32,
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "vocab_size": 100278,
            },
            7_298_011_136,
            id="OLMo-3-7B",
        ),
        pytest.param(
            {
                "model_type": "olmoe",
                "num_hidden_layers": 16,
                "hidden_size": 2048,
                "intermediate_size": 1024,
                "num_attention_heads": 16,
                "num_key_value_heads": 16,
                "num_experts": 64,
                "num_experts_per_tok": 8,
                "vocab_size": 50304,
            },
            6_919_161_856,
            id="OLMoE-1B-7B",
        ),
        pytest.param(
            {
                "model_type": "ministral",
                "num_hidden_layers": 36,
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 131072,
            },
            8_019_808_256,
            id="Ministral-8B",
        ),
        pytest.param(
            {
                "model_type": "exaone4",
                "num_hidden_layers": 64,
                "hidden_size": 5120,
                "intermediate_size": 27392,
                "num_attention_heads": 40,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 102400,
                "sliding_window_pattern": "LLLG",
                "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 16,
            },
            32_003_216_384,
            id="EXAONE-4.0-32B",
        ),
    ],
)
def test_a_config_json_as_the_hub_has_it_is_counted(config: dict[str, Any], total: int) -> None:
    assert count_parameters(config) == total
    assert count_parameters(AutoConfig.for_model(**config)) == total


@pytest.fixture
def _fresh() -> Iterator[None]:
    """Look for tables anew, before and after."""
    layouts.cache_clear()
    yield
    layouts.cache_clear()


@pytest.mark.usefixtures("_fresh")
def test_a_family_of_another_package_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(layout_of("mistral"), model_type="other")
    entry = SimpleNamespace(name="other", value="package:LAYOUT", load=lambda: other)
    monkeypatch.setattr(catalog, "entry_points", lambda group: [entry] if group == "minitron_nas.families" else [])
    layouts.cache_clear()
    assert layout_of("other") is other


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import is_not_there", "cannot be imported (ModuleNotFoundError: No module named 'is_not_there')"),
        ("raise SystemExit('needs a key')", "cannot be imported (SystemExit: needs a key)"),
        ("", "cannot be imported (AttributeError: module 'broken_family' has no attribute 'LAYOUT')"),
        ("LAYOUT = 'no table'", "is a str, not a minitron_nas.architecture.layout.Layout"),
    ],
)
def test_a_family_package_that_is_broken_is_told_once_and_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], code: str, fault: str
) -> None:
    about = tmp_path / "broken_families-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-families\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[minitron_nas.families]\nnew = broken_family:LAYOUT\n")
    (tmp_path / "broken_family.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_family", raising=False)
    assert (layout_of("llama").model_type, len(layouts())) == ("llama", 72)
    told = (
        f"package broken-families, entry point 'new' of group 'minitron_nas.families': broken_family:LAYOUT {fault}; "
    )
    assert capfd.readouterr().err == f"{told}its family is not known until the package is repaired or removed\n"
