"""The online teacher."""

import numpy as np
import pytest
import torch

from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.testing import tiny_config, tiny_model
from minitron_nas.text.packing import pack


def some_tokens(num_sequences, sequence_length=16):
    generator = np.random.default_rng(7)
    pieces = [generator.integers(3, 320, size=generator.integers(3, 24)) for _ in range(2 * num_sequences + 4)]
    return pack(pieces, sequence_length).first(num_sequences)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "nemotron", "qwen2"])
@torch.no_grad()
def test_the_targets_are_the_models_logits(model_type):
    model, tokens = tiny_model(tiny_config(model_type)), some_tokens(2)
    targets = OnlineTeacher(model).targets(torch.arange(2), tokens)
    expected = model(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False).logits
    assert targets.hidden.shape == (2 * 16, 48)
    torch.testing.assert_close(targets.logits(), expected.flatten(0, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(targets.of(slice(5, 9)).logits(), expected.flatten(0, 1)[5:9], rtol=1e-5, atol=1e-5)


def test_the_teacher_is_left_as_it_was():
    model = tiny_model(tiny_config("llama"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    OnlineTeacher(model).targets(torch.arange(2), some_tokens(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_targets_carry_no_graph():
    targets = OnlineTeacher(tiny_model(tiny_config("llama"))).targets(torch.arange(1), some_tokens(1))
    assert not targets.hidden.requires_grad
    assert not targets.head.weight.requires_grad
