"""What experts compute inside the module that they share."""

import torch
from torch import nn

from minitron_nas.importance.experts import expert_neurons, expert_tokens


class Experts(nn.Module):
    """Two experts of two neurons over two channels; the second's matrices are twice the first's."""

    def __init__(self) -> None:
        super().__init__()
        one = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
        self.gate_up_proj = nn.Parameter(torch.stack([one, 2 * one]))
        self.act_fn = nn.ReLU()


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
