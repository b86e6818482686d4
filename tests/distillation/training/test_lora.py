"""Low-rank additions: what they leave alone, what is trained, and that merging changes nothing."""

import copy

import pytest
import torch

from minitron_nas.distillation.training.lora import add_adapters, merge_adapters, require_peft
from minitron_nas.errors import PlanError
from minitron_nas.families.catalog import layouts
from minitron_nas.testing import tiny_config, tiny_model

IDS = torch.arange(5, 25)[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def trained(model):
    """Adapters as training would leave them: the half that begins at zero is not zero any more."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", layouts())
def test_adapters_change_nothing_until_they_are_trained_and_merged_they_are_in_the_weights(model_type, tied):
    model = tiny_model(tiny_config(model_type, tied=tied))
    before, start = logits(model), copy.deepcopy(model.state_dict())
    add_adapters(model, rank=4, seed=0)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    adapted = logits(trained(model))
    assert (adapted - before).abs().max() > 0.05
    merge_adapters(model)
    tolerance = max(5e-5, layouts()[model_type].logits_tolerance)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=tolerance)
    assert list(model.state_dict()) == list(start)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_additions_alone_are_trained_and_have_the_rank_that_is_asked_for():
    model = tiny_model(tiny_config("llama"))
    add_adapters(model, rank=3, seed=0)
    trainable = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 4 * 7 * 2
    assert {min(shape) for shape in trainable.values()} == {3}
    assert all("lora_" in name and "lm_head" not in name for name in trainable)


def test_a_merged_weight_is_the_weight_plus_twice_the_product():
    model = tiny_model(tiny_config("llama"))
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    add_adapters(model, rank=4, seed=0)
    module = trained(model).model.layers[0].mlp.up_proj
    product = module.lora_B["default"].weight @ module.lora_A["default"].weight
    merge_adapters(model)
    torch.testing.assert_close(model.model.layers[0].mlp.up_proj.weight, before + 2 * product)


def test_the_seed_decides_where_adapters_begin_and_nobody_elses_numbers():
    def beginning(seed):
        model = tiny_model(tiny_config("llama"))
        add_adapters(model, rank=4, seed=seed)
        return model.model.layers[0].mlp.up_proj.lora_A["default"].weight

    state = torch.random.get_rng_state()
    first = beginning(0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(beginning(0), first)
    assert not torch.equal(beginning(1), first)


def test_without_peft_the_extra_is_named(monkeypatch):
    require_peft()
    monkeypatch.setattr("minitron_nas.distillation.training.lora.find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"correct.weights=lora needs peft; pip install '\.\[lora\]' in the checkout"):
        require_peft()
