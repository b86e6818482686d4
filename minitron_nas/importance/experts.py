"""What experts compute that no hook shows, because they run as one module."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def expert_tokens(chosen: Tensor, expert: int) -> tuple[Tensor, Tensor]:
    """Return which tokens an expert is sent, and as which of their choices.

    Args:
        chosen: (num_tokens, num_experts_per_tok), the experts that each token is sent to.
        expert: The expert.

    Returns:
        (num_sent,) and (num_sent,), indices of tokens and of choices.
    """
    tokens, choices = torch.where(chosen == expert)
    return tokens, choices


def expert_neurons(experts: nn.Module, expert: int, inputs: Tensor) -> Tensor:
    """Compute again what an expert's down projection reads.

    Args:
        experts: Holds `gate_up_proj` (num_experts, 2 x num_neurons, hidden_size) and its activation `act_fn`.
        expert: The expert.
        inputs: (num_sent, hidden_size), the tokens that it is sent.

    Returns:
        (num_sent, num_neurons).
    """
    gate, up = linear(inputs, experts.get_parameter("gate_up_proj")[expert]).chunk(2, dim=-1)
    active: Tensor = experts.get_submodule("act_fn")(gate)
    return active * up
