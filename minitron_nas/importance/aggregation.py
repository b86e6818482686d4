"""The two nested aggregations that turn activations into scores."""

import torch
from torch import Tensor

from minitron_nas.importance.settings import Aggregation


def over_sequence(activations: Tensor, aggregation: Aggregation) -> Tensor:
    """Aggregate a sample's tokens: mean_j |x_j|, sqrt(sum_j x_j^2) or mean_j (x_j - mean x)^2.

    Args:
        activations: (batch, seq_len, num_units), any float dtype.
        aggregation: Which of the three.

    Returns:
        (batch, num_units), float32, not negative.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 2.2.
    """
    wide = activations.float()
    if aggregation == "mean":
        return wide.abs().mean(dim=1)
    if aggregation == "l2":
        return wide.square().sum(dim=1).sqrt()
    return wide.var(dim=1, unbiased=False)


def sample_sums(samples: Tensor) -> Tensor:
    """Sum up what aggregating over samples needs of some of them; of two sets of samples both sums add up.

    Args:
        samples: (num_samples, num_units), any float dtype.

    Returns:
        (3, num_units), float64: number, sum and sum of squares.
    """
    wide = samples.double()
    total = wide.sum(dim=0)
    return torch.stack([torch.full_like(total, len(wide)), total, (wide * wide).sum(dim=0)])


def over_samples(sums: Tensor, aggregation: Aggregation) -> Tensor:
    """Aggregate samples by the same three functions.

    Args:
        sums: (3, num_units), as `sample_sums` returns them.
        aggregation: Which of the three.

    Returns:
        (num_units,), float32, on the CPU.
    """
    number, total, squares = sums.unbind()
    if aggregation == "l2":
        return squares.sqrt().float().cpu()
    mean = total / number
    # Rounding may leave the variance of a constant unit slightly below zero.
    result = (squares / number - mean * mean).clamp(min=0) if aggregation == "variance" else mean
    return result.float().cpu()
