"""What a checkpoint is expected to hold, read off its family's table."""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.layout import EXPERTS_IN_STACKS
from minitron_nas.architecture.spec import Architecture
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.expected import ExpectedTensors
from minitron_nas.storage.weights import TensorHeader
from minitron_nas.testing import tiny_config
from minitron_nas.testing.tiny import TINY_E2B

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def expected(tied: bool) -> ExpectedTensors:
    return ExpectedTensors.of(
        Architecture("llama", 1, 16, 32, 4, 2, 4, 50, tie_word_embeddings=tied), layout_of("llama")
    )


def test_an_untied_model_needs_its_output_head() -> None:
    tensors = expected(tied=False)
    assert tensors.required[HEAD] == (50, 16)
    assert tensors.twins == {}
    assert tensors.known == tensors.required


def test_a_tied_model_may_carry_it_as_a_copy_of_the_embedding() -> None:
    tensors = expected(tied=True)
    assert HEAD not in tensors.required
    assert tensors.twins == {HEAD: (50, 16)}
    assert tensors.embedding == EMBEDDING
    assert tensors.known == {**tensors.required, HEAD: (50, 16)}


def test_the_table_gives_every_tensor_its_shape() -> None:
    layer = "model.layers.0."
    assert dict(expected(tied=True).required) == {
        EMBEDDING: (50, 16),
        f"{layer}input_layernorm.weight": (16,),
        f"{layer}self_attn.q_proj.weight": (16, 16),
        f"{layer}self_attn.k_proj.weight": (8, 16),
        f"{layer}self_attn.v_proj.weight": (8, 16),
        f"{layer}self_attn.o_proj.weight": (16, 16),
        f"{layer}post_attention_layernorm.weight": (16,),
        f"{layer}mlp.gate_proj.weight": (32, 16),
        f"{layer}mlp.up_proj.weight": (32, 16),
        f"{layer}mlp.down_proj.weight": (16, 32),
        "model.norm.weight": (16,),
    }


@pytest.mark.parametrize("stored", ["h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.weight"])
def test_older_names_become_those_of_the_table_and_what_it_ignores_is_left_out(tmp_path: Path, stored: str) -> None:
    shape = Architecture("gpt2", 1, 16, 64, 4, 4, 4, 50, max_position_embeddings=8, tie_word_embeddings=True)
    header = TensorHeader(tmp_path, (16, 48), "F32", 4 * 16 * 48, 0)
    found = {stored: header, "h.0.attn.bias": header, "stranger": header}
    named = ExpectedTensors.of(shape, layout_of("gpt2")).named(found)
    assert named == {"transformer.h.0.attn.c_attn.weight": header, "stranger": header}


def stacked(num_experts: int) -> ExpectedTensors:
    shape = Architecture("gpt_oss", 1, 16, 32, 4, 2, 4, 50, num_experts=num_experts, num_experts_per_tok=1)
    return ExpectedTensors.of(shape, layout_of("gpt_oss"))


STACK = "model.layers.0.mlp.experts.down_proj"


def test_a_stack_has_the_number_of_its_slices_before_their_shape() -> None:
    tensors = stacked(3)
    assert tensors.required[STACK] == (3, 32, 16)
    assert tensors.required[f"{STACK}_bias"] == (3, 16)
    assert set(tensors.stacks.values()) == {3}
    assert len(tensors.stacks) == 4


def test_every_slice_of_a_stack_gets_a_header_of_its_own_one_behind_the_other(tmp_path: Path) -> None:
    header = TensorHeader(tmp_path, (3, 32, 16), "BF16", 2 * 3 * 32 * 16, 100)
    found = stacked(3).sliced({"model.norm.weight": header, STACK: header})
    assert found["model.norm.weight"] == header
    assert {name: slice_.offset for name, slice_ in found.items() if name.startswith(STACK)} == {
        f"{STACK}[0]": 100,
        f"{STACK}[1]": 100 + 1024,
        f"{STACK}[2]": 100 + 2048,
    }
    assert found[f"{STACK}[1]"] == TensorHeader(tmp_path, (32, 16), "BF16", 1024, 1124)


def test_a_stack_of_another_length_stays_whole(tmp_path: Path) -> None:
    header = TensorHeader(tmp_path, (3, 32, 16), "BF16", 2 * 3 * 32 * 16, 100)
    assert stacked(4).sliced({STACK: header}) == {STACK: header}


def test_layers_behind_the_last_are_left_out_where_transformers_drops_them(tmp_path: Path) -> None:
    header = TensorHeader(tmp_path, (16,), "F32", 64, 0)
    shape = Architecture("llama", 2, 16, 32, 4, 2, 4, 50)
    found = {f"model.layers.{number}.input_layernorm.weight": header for number in (1, 2, 12)}
    plain, dropping = layout_of("llama"), replace(layout_of("llama"), drops_later_layers=True)
    assert ExpectedTensors.of(shape, plain).named(found) == found
    assert list(ExpectedTensors.of(shape, dropping).named(found)) == ["model.layers.1.input_layernorm.weight"]


def test_what_lies_beside_the_model_is_left_out_where_transformers_drops_it(tmp_path: Path) -> None:
    header = TensorHeader(tmp_path, (16,), "F32", 64, 0)
    shape = Architecture("llama", 2, 16, 32, 4, 2, 4, 50)
    layout = replace(layout_of("llama"), ignored_modules=("mtp.",))
    found = {"mtp.norm.weight": header, "model.norm.weight": header}
    assert list(ExpectedTensors.of(shape, layout).named(found)) == ["model.norm.weight"]


EXPERTS = "model.layers.0.mlp.experts"


def with_experts() -> ExpectedTensors:
    shape = Architecture(
        "qwen3_moe", 1, 16, 32, 4, 2, 4, 50, num_experts=3, num_experts_per_tok=1, moe_intermediate_size=24
    )
    return ExpectedTensors.of(shape, replace(layout_of("qwen3_moe"), stacked=EXPERTS_IN_STACKS))


def test_experts_that_lie_in_a_stack_get_the_headers_of_their_own_tensors(tmp_path: Path) -> None:
    stack = TensorHeader(tmp_path, (3, 48, 16), "BF16", 2 * 3 * 48 * 16, 100)
    named = with_experts().named({f"{EXPERTS}.gate_up_proj": stack})
    half = 2 * 24 * 16
    assert {name.removeprefix(f"{EXPERTS}."): header.offset for name, header in named.items()} == {
        f"{expert}.{part}_proj.weight": 100 + (2 * expert + number) * half
        for expert in range(3)
        for number, part in enumerate(("gate", "up"))
    }
    assert {(header.shape, header.num_bytes) for header in named.values()} == {((24, 16), half)}


@pytest.mark.parametrize("shape", [(3, 47, 16), (48, 16)])
def test_what_is_no_stack_of_experts_keeps_its_name(tmp_path: Path, shape: tuple[int, ...]) -> None:
    odd = {f"{EXPERTS}.gate_up_proj": TensorHeader(tmp_path, shape, "BF16", 2 * prod(shape), 0)}
    assert with_experts().named(odd) == odd


def test_keys_and_values_of_layers_that_read_those_of_others_are_left_out_as_transformers_does(tmp_path: Path) -> None:
    config, header = tiny_config("gemma4_text", **TINY_E2B), TensorHeader(tmp_path, (16, 48), "F32", 64, 0)
    expected = ExpectedTensors.of(architecture_of(config.to_dict(), layout_of("gemma4_text")), layout_of("gemma4_text"))
    parts = ("k_proj.weight", "v_proj.weight", "k_norm.weight", "q_proj.weight", "q_proj.bias", "r_proj.weight")
    found = {f"model.layers.{layer}.self_attn.{part}": header for layer in (3, 4, 6) for part in parts}
    named = expected.named(found)
    assert found.keys() - named.keys() == {
        f"model.layers.{layer}.self_attn.{part}" for layer in (4, 6) for part in parts[:3]
    }
