"""What experts compute that no hook shows, because they run as one module.

The module is asked, by the interface through which transformers lets kernels compute experts: how it stores their
matrices, whether these have biases, and what it makes of the outputs of the first. Llama 4's has no such interface: it
is called with the tokens of each expert, one expert after the other, times what the router gives them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def sent_to(experts: nn.Module, expert: int, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return which tokens an expert is sent, what it reads of them, and what its outputs are weighed with.

    Args:
        experts: A module of transformers' that computes all experts of a layer.
        expert: The expert.
        args: What the module is called with: (num_tokens, hidden_size), the experts that each token is sent to and
            their weights, both (num_tokens, num_experts_per_tok); or (num_experts * num_tokens, hidden_size) alone,
            already weighed, and zero where an expert is not sent a token.

    Returns:
        (num_sent,) indices, (num_sent, hidden_size) and (num_sent, 1).
    """
    if len(args) == 1:
        read = args[0].unflatten(0, (len(experts.get_parameter("down_proj")), -1))[expert]
        (tokens,) = torch.where(read.any(dim=-1))
        return tokens, read[tokens], read.new_ones(len(tokens), 1)
    inputs, chosen, weights = args
    tokens, choices = expert_tokens(chosen, expert)
    return tokens, inputs[tokens], weights[tokens, choices, None]


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
        experts: A module of transformers' that holds `gate_up_proj`, or `up_proj` where nothing gates.
        expert: The expert.
        inputs: (num_sent, hidden_size), the tokens that it is sent.

    Returns:
        (num_sent, num_neurons).
    """
    module: Any = experts
    if _reads_weighed(experts):
        gates, ups = (inputs @ module.gate_up_proj[expert]).chunk(2, dim=-1)
        weighed: Tensor = ups * module.act_fn(gates)
        return weighed
    if module.has_gate:
        gated: Tensor = module._apply_gate(_projected(experts, "gate_up_proj", expert, inputs))
        return gated
    active: Tensor = module.act_fn(_projected(experts, "up_proj", expert, inputs))
    return active


def expert_outputs(experts: nn.Module, expert: int, neurons: Tensor) -> Tensor:
    """Compute again what an expert puts out, before the router weighs it.

    Args:
        experts: As above; holds `down_proj`.
        expert: The expert.
        neurons: (num_sent, num_neurons), what its down projection reads.

    Returns:
        (num_sent, hidden_size).
    """
    return _projected(experts, "down_proj", expert, neurons)


def _reads_weighed(experts: nn.Module) -> bool:
    """Whether it is Llama 4's module: gates, then ups, stored (inputs, outputs), without biases."""
    return not hasattr(experts, "has_gate")


def _projected(experts: nn.Module, name: str, expert: int, inputs: Tensor) -> Tensor:
    module: Any = experts
    weight = experts.get_parameter(name)[expert]
    if _reads_weighed(experts):
        return inputs @ weight
    bias = experts.get_parameter(f"{name}_bias")[expert] if module.has_bias else None
    return linear(inputs, weight.T if module.is_transposed else weight, bias)
