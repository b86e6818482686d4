"""What experts compute inside the module that they share."""

import pytest
import torch
from torch import Tensor, nn

from minitron_nas.importance.experts import expert_neurons, expert_outputs, expert_tokens, sent_to
from minitron_nas.models.causal_lm import decoder_of
from minitron_nas.testing import tiny_config, tiny_model


class Experts(nn.Module):
    """Two experts of two neurons over two channels; the second's matrices are twice the first's."""

    has_gate, has_bias, is_transposed = True, False, False

    def __init__(self) -> None:
        super().__init__()
        one = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
        self.gate_up_proj = nn.Parameter(torch.stack([one, 2 * one]))
        self.down_proj = nn.Parameter(torch.eye(2).repeat(2, 1, 1))
        self.act_fn = nn.ReLU()

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate) * up


class Ungated(nn.Module):
    """One expert with a squared ReLU; matrices are stored (inputs, outputs), with biases."""

    has_gate, has_bias, is_transposed = False, True, True

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]]))
        self.up_proj_bias = nn.Parameter(torch.tensor([[0.0, 0.5, -1.0]]))
        self.down_proj = nn.Parameter(torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]]))
        self.down_proj_bias = nn.Parameter(torch.tensor([[-1.0, 1.0]]))

    def act_fn(self, inputs: Tensor) -> Tensor:
        return inputs.relu().square()


def test_neurons_are_the_active_gate_times_what_goes_up() -> None:
    inputs = torch.tensor([[3.0, -1.0], [1.0, 2.0]])
    # gate (3, -1) and (1, 2), up (2, 4) and (3, -1)
    expected = torch.tensor([[6.0, 0.0], [3.0, -2.0]])
    assert torch.equal(expert_neurons(Experts(), 0, inputs), expected)
    assert torch.equal(expert_neurons(Experts(), 1, inputs), 4 * expected)


def test_an_expert_gets_the_tokens_that_chose_it_first_or_second() -> None:
    chosen = torch.tensor([[0, 2], [1, 0], [2, 1]])
    tokens, choices = expert_tokens(chosen, 0)
    assert tokens.tolist() == [0, 1]
    assert choices.tolist() == [0, 1]


def test_an_expert_reads_the_tokens_that_it_is_sent_and_weighs_what_it_puts_out() -> None:
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    chosen, weights = torch.tensor([[0, 2], [1, 0], [2, 1]]), torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    tokens, read, weighed = sent_to(Experts(), 1, (inputs, chosen, weights))
    assert tokens.tolist() == [1, 2]
    assert torch.equal(read, inputs[1:])
    assert torch.equal(weighed, torch.tensor([[0.3], [0.6]]))


def test_of_tokens_that_are_weighed_before_an_expert_is_sent_those_that_are_not_zero() -> None:
    routed = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 4.0]])  # of two tokens: the first, then the second
    tokens, read, weighed = sent_to(Experts(), 1, (routed,))
    assert tokens.tolist() == [1]
    assert read.tolist() == [[0.0, 4.0]]
    assert weighed.tolist() == [[1.0]]


def test_llama_4_gates_and_goes_up_by_one_matrix_that_is_stored_inputs_first() -> None:
    experts = decoder_of(tiny_model(tiny_config("llama4_text"))).layers[1].feed_forward.experts
    inputs = torch.randn(4, 5, 48, generator=torch.Generator().manual_seed(0))
    together = experts(inputs.flatten(0, 1)).unflatten(0, (4, 5))
    for expert in range(4):
        found = expert_outputs(experts, expert, expert_neurons(experts, expert, inputs[expert]))
        torch.testing.assert_close(found, together[expert], rtol=1e-5, atol=1e-6)


def test_experts_without_a_gate_are_asked_for_their_activation_and_have_biases() -> None:
    inputs = torch.tensor([[2.0, -1.0]])
    # up (2, -1, 1) + (0, 0.5, -1) = (2, -0.5, 0), squared ReLU (4, 0, 0)
    neurons = expert_neurons(Ungated(), 0, inputs)
    assert torch.equal(neurons, torch.tensor([[4.0, 0.0, 0.0]]))
    assert torch.equal(expert_outputs(Ungated(), 0, neurons), torch.tensor([[3.0, 1.0]]))


@pytest.mark.parametrize("family", ["gpt_oss", "granitemoe", "mixtral"])
def test_one_expert_computes_what_its_module_does_for_a_token_that_is_sent_to_it_alone(family: str) -> None:
    changes = {"swiglu_limit": 0.5} if family == "gpt_oss" else {}  # so low that it clamps
    model = tiny_model(tiny_config(family, **changes))
    layer = model.get_decoder().layers[0]
    experts = (layer.block_sparse_moe if family == "granitemoe" else layer.mlp).experts
    inputs = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    for expert in range(4):
        alone = experts(inputs, torch.full((5, 1), expert), torch.ones(5, 1))
        found = expert_outputs(experts, expert, expert_neurons(experts, expert, inputs))
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)
