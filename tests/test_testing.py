import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_nas.testing import tiny_checkpoint, tiny_config, tiny_model, tiny_tokenizer

FAMILIES = ("llama", "mistral", "nemotron", "qwen2")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_parameter_of_a_tiny_model_is_random(model_type):
    model = tiny_model(tiny_config(model_type))
    assert all(parameter.unique().numel() > 8 for parameter in model.parameters())


def test_the_same_seed_gives_the_same_bits_whatever_torch_drew_before():
    first = tiny_model(tiny_config("llama"), seed=3).state_dict()
    torch.rand(7)
    second = tiny_model(tiny_config("llama"), seed=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_building_a_tiny_model_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    tiny_model(tiny_config("llama"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_tiny_checkpoint_loads_in_stock_transformers_with_the_logits_it_was_saved_with(tmp_path, model_type, tied):
    folder = tiny_checkpoint(tmp_path / "model", model_type, seed=1, tied=tied)
    ids = AutoTokenizer.from_pretrained(folder)("the tenth", return_tensors="pt").input_ids
    expected = tiny_model(tiny_config(model_type, tied=tied), seed=1)(ids).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, expected)


@pytest.mark.parametrize("vocab_size", [259, 320, 455])
def test_a_tiny_tokenizer_has_the_asked_size_and_loses_no_text(vocab_size):
    tokenizer = tiny_tokenizer(vocab_size)
    text = "Hello — the  world!\n\tété 日本 <|im_end|>"
    assert len(tokenizer) == vocab_size
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("vocab_size", [258, 456])
def test_a_tiny_tokenizer_refuses_sizes_that_it_cannot_fill(vocab_size):
    with pytest.raises(ValueError, match=rf"vocab_size={vocab_size} is not in 259\.\.455"):
        tiny_tokenizer(vocab_size)
