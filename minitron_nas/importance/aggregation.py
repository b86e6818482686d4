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


class BatchAggregate:
    """The same three functions over samples, accumulated batch by batch in float64."""

    def __init__(self) -> None:
        """Start from nothing."""
        self._sum = torch.zeros((), dtype=torch.float64)
        self._sum_of_squares = torch.zeros((), dtype=torch.float64)
        self._num_samples = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return self._num_samples == 0

    def add(self, samples: Tensor) -> None:
        """Add a batch of shape (batch, num_units).

        Args:
            samples: (batch, num_units), any float dtype.
        """
        wide = samples.double()
        self._sum = self._sum.to(wide.device) + wide.sum(dim=0)
        self._sum_of_squares = self._sum_of_squares.to(wide.device) + (wide * wide).sum(dim=0)
        self._num_samples += len(samples)

    def score(self, aggregation: Aggregation) -> Tensor:
        """Return (num_units,), float32, on the CPU."""
        if aggregation == "l2":
            result = self._sum_of_squares.sqrt()
        else:
            mean = self._sum / self._num_samples
            result = mean
            if aggregation == "variance":
                # Rounding may leave a constant unit slightly below zero.
                result = (self._sum_of_squares / self._num_samples - mean * mean).clamp(min=0)
        return result.float().cpu()

    def mean(self) -> Tensor:
        """Return the plain mean over samples, (num_units,), float32, on the CPU."""
        return self.score("mean")
