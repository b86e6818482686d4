"""Repair: what is written to the residual stream makes up for the inputs that were cut.

An output projection W of attention or FFN reads x; a student keeps the entries S of x. The ridge
regression of x on x_S predicts what was cut from what is left,

    T = I_S + (C[:, S] - I_S C[S, S]) (C[S, S] + r I)^-1,    C = E[x x^T],    r = ridge * mean diag C[S, S],

with I_S the columns S of the identity, and W T takes the place of W[:, S]. The penalty pulls towards
plain selection, so that a large ridge repairs nothing; where nothing is cut, T is the identity.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitron_nas.importance.tensor_folder import TensorFolder


@dataclass(frozen=True, slots=True, eq=False)
class Mend:
    """What mixes the inputs of one output projection.

    Attributes:
        moments: The `TensorFolder` of second moments, by the names of the teacher's tensors.
        name: The teacher's tensor.
        kept: (num_kept,), the ascending indices of the inputs that stay.
        size: How many inputs the teacher's tensor has.
        ridge: Strength of the penalty, as a share of the mean square of the inputs that stay.
    """

    moments: Path
    name: str
    kept: Any
    size: int
    ridge: float

    @property
    def shape(self) -> tuple[int, ...]:
        """(size, num_kept)."""
        return self.size, len(self.kept)

    def matrix(self) -> Tensor:
        """Return T, (size, num_kept), float64."""
        return _solved(self)


@lru_cache(maxsize=1)
def _solved(mend: Mend) -> Tensor:
    return ridge_map(TensorFolder(mend.moments)[mend.name], torch.from_numpy(mend.kept), mend.ridge)


def ridge_map(moment: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """Return the map from the inputs that stay to all of them.

    Args:
        moment: (size, size): E[x x^T].
        kept: (num_kept,), ascending indices.
        ridge: Strength of the penalty, as a share of the mean of the diagonal.

    Returns:
        (size, num_kept), float64.
    """
    leaves = torch.ones(len(moment), dtype=torch.bool)
    leaves[kept] = False
    rows = moment[:, kept]
    matrix = torch.zeros(rows.shape, dtype=torch.float64)
    matrix[kept, torch.arange(len(kept))] = 1  # what stays predicts itself
    matrix[leaves] = ridge_regression(rows[leaves].double(), rows[kept].double(), None, ridge)
    return matrix


def ridge_regression(cross: Tensor, moment: Tensor, start: Tensor | None, ridge: float) -> Tensor:
    """Return the X that minimises E|y - X x|^2 + r |X - start|^2, r = ridge * mean diag E[x x^T].

    Args:
        cross: (outputs, inputs), E[y x^T].
        moment: (inputs, inputs), E[x x^T].
        start: (outputs, inputs), what the penalty pulls towards; None for zero.
        ridge: Strength of the penalty; with 0 inputs must be linearly independent.

    Returns:
        (outputs, inputs), in the dtype of the arguments.
    """
    penalised = moment.clone()
    penalised.diagonal().add_(ridge * moment.diagonal().mean())
    factor = torch.linalg.cholesky(penalised)
    if start is None:
        return torch.cholesky_solve(cross.T, factor).T
    return start + torch.cholesky_solve((cross - start @ moment).T, factor).T
