import copy

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_nas.errors import CheckpointError
from minitron_nas.models.live import save_live_model
from minitron_nas.testing import tiny_config, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "nemotron", "qwen2"])
def test_a_saved_live_model_gives_the_same_logits_to_the_bit(tmp_path, model_type, tied):
    model = tiny_model(tiny_config(model_type, tied=tied))
    folder = save_live_model((model, tiny_tokenizer()), tmp_path / "teacher")
    ids = torch.arange(40).view(2, 20)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, model(ids).logits)


def test_generation_config_and_chat_template_are_saved_beside_the_weights(tmp_path):
    model = tiny_model(tiny_config("llama"))
    model.generation_config.max_length = 77
    folder = save_live_model((model, tiny_tokenizer()), tmp_path / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.max_length == 77


def test_the_live_model_is_left_as_it_was(tmp_path):
    model = tiny_model(tiny_config("llama")).train()
    before = copy.deepcopy((model.config.to_dict(), model.generation_config.to_dict(), model.state_dict()))
    save_live_model((model, tiny_tokenizer()), tmp_path / "teacher")
    assert model.training
    assert (model.config.to_dict(), model.generation_config.to_dict()) == before[:2]
    assert all(torch.equal(tensor, before[2][name]) for name, tensor in model.state_dict().items())


def test_a_wrapped_model_is_refused_by_its_class(tmp_path):
    model = torch.nn.Sequential(tiny_model(tiny_config("llama")))
    with pytest.raises(CheckpointError, match="is a Sequential, not a transformers PreTrainedModel; unwrap it"):
        save_live_model((model, tiny_tokenizer()), tmp_path / "teacher")


def test_a_tokenizer_of_another_library_is_refused(tmp_path):
    pair = (tiny_model(tiny_config("llama")), tiny_tokenizer().backend_tokenizer)
    with pytest.raises(CheckpointError, match="tokenizer is a Tokenizer, not a transformers tokenizer"):
        save_live_model(pair, tmp_path / "teacher")


def test_a_quantised_live_model_is_refused(tmp_path):
    model = tiny_model(tiny_config("llama"))
    model.hf_quantizer = object()
    with pytest.raises(CheckpointError, match=r"is quantised; .* without a quantization_config"):
        save_live_model((model, tiny_tokenizer()), tmp_path / "teacher")


def test_a_tokenizer_that_changes_when_it_is_saved_is_refused_and_nothing_is_left(tmp_path):
    # AutoTokenizer gives every qwen2 folder Qwen's own splitting rules, so other rules are lost.
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("e", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(CheckpointError, match="once it is saved and loaded by AutoTokenizer; give a folder"):
        save_live_model((tiny_model(tiny_config("qwen2")), tokenizer), tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize(
    "flags", [{"temperature": 0.9, "do_sample": False}, {"top_p": 0.6}, {"num_beams": 1, "length_penalty": 2.0}]
)
def test_a_generation_config_that_contradicts_itself_is_refused_before_weights_are_written(tmp_path, flags):
    model = tiny_model(tiny_config("llama"))
    model.generation_config.update(**flags)
    with pytest.raises(CheckpointError, match="transformers refuses to save the live teacher's generation_config"):
        save_live_model((model, tiny_tokenizer()), tmp_path / "teacher")
    assert list(tmp_path.iterdir()) == []
