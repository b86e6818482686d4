"""A tiny config keeps what is odd about the real one."""

from typing import Any

import pytest
from transformers import AutoConfig

from minitron_nas.architecture.config import architecture_of
from minitron_nas.families.catalog import layout_of
from minitron_nas.testing.shrink import shrunk

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": True,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "pad_token_id": None,
    "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
    "vocab_size": 128256,
}


def tiny(**changes: Any) -> dict[str, Any]:
    return shrunk({**LLAMA_8B, **changes}, layout_of("llama").config_names)


def test_sizes_become_tiny_and_compare_as_they_did() -> None:
    assert tiny() == {
        "model_type": "llama",
        "attention_bias": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 48,
        "intermediate_size": 168,
        "max_position_embeddings": 256,
        "num_attention_heads": 6,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": None,
        "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
        "vocab_size": 320,
    }


@pytest.mark.parametrize(("said", "tried"), [(1.0, 1.25), (0.5, 0.5)])
def test_a_factor_of_logits_that_would_hide_what_is_done_with_it_becomes_another(said: float, tried: float) -> None:
    assert tiny(logits_scaling=said)["logits_scaling"] == tried


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"num_key_value_heads": 32}, (48, 6, 6, 8), id="a group for each head"),
        pytest.param({"num_key_value_heads": 1}, (48, 6, 2, 8), id="one group, which could not leave"),
        pytest.param({"num_key_value_heads": 16}, (32, 4, 2, 8), id="two heads a group"),
        pytest.param({"hidden_size": 5120}, (48, 6, 2, 8), id="heads narrower than the hidden size"),
        pytest.param({"hidden_size": 2048}, (48, 6, 2, 16), id="heads twice as wide as the hidden size"),
        pytest.param({"partial_rotary_factor": 0.4}, (60, 6, 2, 10), id="a share of the channels is rotated"),
    ],
)
def test_heads_are_as_they_were(changes: dict[str, Any], expected: tuple[int, ...]) -> None:
    found = tiny(**changes)
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    assert tuple(found[name] for name in names) == expected


@pytest.mark.parametrize(
    ("model_type", "sizes", "expected"),
    [
        pytest.param("nemotron_h", (4480, 40, 8, 128, 80, 8), (96, 24, 8, 2), id="Nemotron-Nano-9B-v2"),
        pytest.param("falcon_h1", (1024, 8, 2, 24, 64, 1), (48, 12, 8, 1), id="Falcon-H1-0.5B"),
        pytest.param("granitemoehybrid", (2048, 32, 8, 64, 64, 1), (48, 12, 8, 1), id="Granite-4.0-H-Micro"),
        pytest.param("granitemoehybrid", (1024, 8, 8, 16, 64, 4), (48, 6, 8, 2), id="as many channels as are hidden"),
    ],
)
def test_mixers_are_as_wide_beside_the_channels_as_they_were(
    model_type: str, sizes: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    names = (
        "hidden_size", "num_attention_heads", "num_key_value_heads",
        "mamba_num_heads", "mamba_head_dim", "mamba_num_groups",
    )  # fmt: skip
    layout = layout_of(model_type)
    given = {key: size for name, size in zip(names, sizes, strict=True) for key in layout.config_names(name)}
    given |= {"mamba_d_ssm": sizes[3] * sizes[4], "mamba_expand": sizes[3] * sizes[4] // sizes[0]}
    if model_type == "nemotron_h":
        given["layers_block_type"] = ["linear_attention", "mlp"] * 4
    config = AutoConfig.for_model(model_type, num_local_experts=0, **given).to_dict()
    found = architecture_of(AutoConfig.for_model(**shrunk(config, layout.config_names)).to_dict(), layout)
    shape = (found.hidden_size, found.mamba_num_heads, found.mamba_head_dim, found.mamba_num_groups)
    assert shape == expected


def test_a_layer_of_every_kind_stays_and_windows_become_shorter_than_a_prompt() -> None:
    kinds = [*["sliding_attention"] * 5, "full_attention"] * 4
    found = tiny(num_hidden_layers=24, layer_types=kinds, layer_rope_theta=[1e4] * 24, sliding_window=4096)
    assert found["num_hidden_layers"] == 4
    assert found["layer_types"] == [*["sliding_attention"] * 3, "full_attention"]
    assert found["layer_rope_theta"] == [1e4] * 4
    assert found["sliding_window"] == 5


def test_lists_of_rotary_factors_fit_the_shorter_heads() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
    assert tiny(rope_parameters=rope)["rope_parameters"] == {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    }


def test_experts_become_few() -> None:
    config = {
        **LLAMA_8B,
        "model_type": "qwen3_moe",
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1536,
    }
    found = shrunk(config, layout_of("qwen3_moe").config_names)
    assert (found["num_experts"], found["num_experts_per_tok"], found["moe_intermediate_size"]) == (4, 2, 16)


def test_a_model_that_is_tiny_keeps_its_sizes() -> None:
    sizes = {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 10}
    found = tiny(**sizes, num_key_value_heads=5, head_dim=4)
    assert {name: found[name] for name in sizes} == sizes
    assert found["vocab_size"] == 320


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        pytest.param("bamba", {"attn_layer_indices": [9, 18, 27]}, {"attn_layer_indices": [3]}, id="all of them gone"),
        pytest.param("bamba", {"attn_layer_indices": [1, 18]}, {"attn_layer_indices": [1]}, id="one left"),
        pytest.param("ernie4_5_moe", {}, {"moe_layer_start_index": 1, "moe_layer_end_index": 3}, id="the last one"),
    ],
)
def test_layers_that_go_by_their_numbers_are_there(
    model_type: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(model_type, **changes).to_dict()
    found = shrunk(config, layout_of(model_type).config_names)
    assert {name: found[name] for name in expected} == expected
    assert set(architecture_of(found, layout_of(model_type)).kinds) == layout_of(model_type).known_kinds()


def test_of_layers_that_share_keys_and_those_that_they_read_some_stay() -> None:
    attention = [*["sliding_attention"] * 4, "full_attention"] * 7
    sizes = {"hidden_size": 1536, "num_key_value_heads": 1, "num_hidden_layers": 35, "layer_types": attention}
    shared = {"num_kv_shared_layers": 20, "use_double_wide_mlp": True}
    config = AutoConfig.for_model("gemma4_text", **sizes, **shared).to_dict()
    layout = layout_of("gemma4_text")
    tiny = shrunk(config, layout.config_names)
    assert (tiny["num_kv_shared_layers"], tiny["vocab_size_per_layer_input"]) == (2, tiny["vocab_size"])
    shape = architecture_of(AutoConfig.for_model(**tiny).to_dict(), layout)
    assert {*shape.kinds} == {*architecture_of(config, layout).kinds}
    assert shape.num_wide_neurons == 2 * shape.intermediate_size
    assert shape.fixed_sizes["hidden_size_per_layer_input"] == 8
