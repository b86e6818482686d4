"""States of chosen places are what the next norm puts out, in every kind of stack, and no others are kept."""

import pytest
import torch

from minitron_nas.distillation.loss.inner_states import InnerStates
from minitron_nas.testing import tiny_config, tiny_model

IDS = torch.arange(3, 15)[None]
LAYERS = 4
NORMS = {
    "llama": "layers.{}.input_layernorm",
    "gemma2": "layers.{}.input_layernorm",
    "gpt2": "h.{}.ln_1",
    "gpt_neox": "layers.{}.input_layernorm",
    "mixtral": "layers.{}.input_layernorm",
}


def run(model):
    return lambda: model(input_ids=IDS, use_cache=False, output_hidden_states=True)


def count_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("model_type", NORMS)
def test_a_place_holds_the_stream_after_the_norm_that_follows(model_type):
    model = tiny_model(tiny_config(model_type))
    output, states = InnerStates(model, range(LAYERS + 1)).during(run(model))
    assert sorted(states) == list(range(LAYERS + 1))
    for place in range(LAYERS):
        norm = model.get_decoder().get_submodule(NORMS[model_type].format(place))
        torch.testing.assert_close(states[place], norm(output.hidden_states[place]))
    torch.testing.assert_close(states[LAYERS], output.hidden_states[-1])


def test_where_a_family_has_no_norm_before_attention_a_place_holds_the_stream_itself():
    model = tiny_model(tiny_config("olmo2"))
    output, states = InnerStates(model, [0, 2, LAYERS]).during(run(model))
    for place in (0, 2, LAYERS):  # transformers' last entry is after the final norm
        torch.testing.assert_close(states[place], output.hidden_states[place])


def test_only_the_places_asked_for_are_kept_and_nothing_is_left_behind():
    model = tiny_model(tiny_config("llama"))
    watched = InnerStates(model, [1])
    _, first = watched.during(lambda: model(input_ids=IDS))
    _, second = watched.during(lambda: model(input_ids=IDS))
    assert list(first) == list(second) == [1]
    assert torch.equal(first[1], second[1])
    assert count_hooks(model) == 0


def test_a_run_that_fails_leaves_no_hook():
    model = tiny_model(tiny_config("llama"))
    with pytest.raises(ZeroDivisionError):
        InnerStates(model, [0, LAYERS]).during(lambda: 1 / 0)
    assert count_hooks(model) == 0


@pytest.mark.parametrize("place", [0, 2, LAYERS])
def test_gradients_reach_the_model_from_a_place_recomputed_activations_or_not(place):
    gradients = []
    for recompute in (False, True):
        model = tiny_model(tiny_config("llama")).train()
        if recompute:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        _, states = InnerStates(model, [place]).during(run(model))
        states[place].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    reached = [gradient is not None for gradient in gradients[0]]
    assert reached == [gradient is not None for gradient in gradients[1]]
    assert any(reached)
    for one, other in zip(*gradients, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other)
