from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from minitron_nas.distillation.loss.losses import LossSums
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets
from minitron_nas.families.catalog import layout_of, with_layout
from minitron_nas.testing import tiny_config, tiny_model

HEADS = [(1.0, None), (8.0, None), (1.0, 3.0), (4.0, 2.0)]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("model_type", "changes", "scaling", "softcap"),
    [
        ("llama", {}, 1.0, None),
        ("granite", {"logits_scaling": 4.0}, 4.0, None),
        ("gemma2", {"final_logit_softcapping": 5.0}, 1.0, 5.0),
    ],
)
def test_a_models_head_gives_the_models_logits(model_type, changes, scaling, softcap):
    model = tiny_model(tiny_config(model_type, **changes), dtype=torch.float64)
    ids = torch.arange(12)[None]
    head = OutputHead.of(model)
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
    assert (head.scaling, head.softcap) == (scaling, softcap)
    torch.testing.assert_close(head.logits(hidden), model(ids).logits[0])


def test_a_table_says_that_what_others_divide_logits_by_multiplies_them():
    model = tiny_model(tiny_config("granite", logits_scaling=4.0))
    with with_layout(replace(layout_of("granite"), multiplies_logits=True)):
        assert OutputHead.of(model).scaling == 0.25


@pytest.mark.parametrize(
    ("model_type", "changes", "has_bias", "scaling"),
    [("cohere", {"logit_scale": 0.25}, False, 4.0), ("phi", {}, True, 1.0)],
)
def test_a_scale_that_multiplies_and_a_bias_are_honoured(model_type, changes, has_bias, scaling):
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = AutoConfig.for_model(model_type, vocab_size=32, **sizes, **tokens, **changes)
    model = tiny_model(config, dtype=torch.float64)
    ids = torch.arange(12)[None]
    head = OutputHead.of(model)
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
    assert (head.bias is not None, head.scaling) == (has_bias, scaling)
    torch.testing.assert_close(head.logits(hidden), model(ids).logits[0])


def test_the_first_entries_are_those_of_the_whole_and_gradients_reach_it():
    weight, bias = numbers(11, 5).requires_grad_(), numbers(11, seed=2).requires_grad_()
    head, hidden = OutputHead(weight, 2.0, 3.0, bias), numbers(4, 5, seed=1)
    cut = head.first(7)
    assert (head.vocab_size, cut.vocab_size) == (11, 7)
    torch.testing.assert_close(cut.logits(hidden), head.logits(hidden)[:, :7])
    cut.logits(hidden).sum().backward()
    assert weight.grad[:7].abs().min() > 0
    assert weight.grad[7:].abs().max() == bias.grad[7:].abs().max() == 0


def test_a_detached_head_takes_no_gradient_and_the_wanted_type():
    head = OutputHead(numbers(11, 5).requires_grad_(), bias=numbers(11).requires_grad_()).detached(torch.bfloat16)
    for part in (head.weight, head.bias):
        assert (part.requires_grad, part.dtype) == (False, torch.bfloat16)
    assert head.logits(numbers(4, 5)).dtype == torch.float32


@pytest.mark.parametrize(("scaling", "softcap"), HEADS)
def test_a_model_has_no_distance_to_itself(scaling, softcap):
    sums, head = LossSums(), OutputHead(numbers(11, 5), scaling, softcap)
    hidden = numbers(20, 5, seed=1)
    sums.add(hidden, head, torch.arange(20) % 11, HiddenTargets(hidden, head))
    assert sums.means().kl_nats == 0
