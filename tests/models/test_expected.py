"""What a checkpoint is expected to hold, read off its family's table."""

from pathlib import Path

import pytest

from minitron_nas.architecture.spec import Architecture
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.expected import ExpectedTensors
from minitron_nas.storage.weights import TensorHeader

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
