"""Repair: what is written to the residual stream makes up for the inputs that were cut.

An output projection W of attention or FFN reads x; a student keeps the entries S of x. The ridge
regression of x on x_S predicts what was cut from what is left,

    T = I_S + (C[:, S] - I_S C[S, S]) (C[S, S] + r I)^-1,    C = E[x x^T],    r = ridge * mean diag C[S, S],

with I_S the columns S of the identity, and W T takes the place of W[:, S]. The penalty pulls towards
plain selection, so that a large ridge repairs nothing; where nothing is cut, T is the identity.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from minitron_nas.errors import CheckpointError
from minitron_nas.importance.tensor_folder import TensorFolder
from minitron_nas.pruning.mix import Digest, Indices


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
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
    kept: Indices
    size: int
    ridge: float

    @property
    def shape(self) -> tuple[int, ...]:
        """(size, num_kept)."""
        return self.size, len(self.kept)

    def matrix(self) -> Tensor:
        """Return T, (size, num_kept), float64; the last that any thread asked for is kept for all of them."""
        with _ONE_AT_A_TIME:  # each takes as much memory as several of its tensors
            if self not in _last:
                _last.clear()
                _last[self] = ridge_map(TensorFolder(self.moments)[self.name], torch.from_numpy(self.kept), self.ridge)
            return _last[self]

    def update(self, digest: Digest) -> None:
        """Feed a hash with what decides the matrix."""
        digest.update(TensorFolder(self.moments)[self.name].numpy().tobytes())
        digest.update(self.kept.tobytes() + str(self.ridge).encode())


_LEAST_RAISED_RIDGE = 1e-8
_ONE_AT_A_TIME = threading.Lock()
_last: WeakKeyDictionary[Mend, Tensor] = WeakKeyDictionary()
"""At most one matrix, for as long as its `Mend` lives."""


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


def regression_bytes(num_read: int) -> int:
    """Return the memory that a `Regression` takes as it is solved: its sums, and twice those in float64.

    Args:
        num_read: Size of what is read.
    """
    return (4 + 8 + 8) * num_read**2


class Regression:
    """Ridge regression of what is wanted on what is read, which come a batch at a time; sums are float32."""

    def __init__(self, num_wanted: int, num_read: int, device: torch.device) -> None:
        """Begin with nothing.

        Args:
            num_wanted: Size of what is wanted.
            num_read: Size of what is read.
            device: Where the sums are.
        """
        self._cross = torch.zeros((num_wanted, num_read), device=device)
        self._moment = torch.zeros((num_read, num_read), device=device)

    def add(self, wanted: Tensor, read: Tensor) -> None:
        """Take a batch.

        Args:
            wanted: (..., num_wanted).
            read: (..., num_read), of the same leading dimensions.
        """
        flat = read.float().flatten(0, -2)
        self._cross.addmm_(wanted.float().flatten(0, -2).T, flat)
        self._moment.addmm_(flat.T, flat)

    def solve(self, start: Tensor, ridge: float, through: Tensor | None = None) -> Tensor:
        """Return the matrix that gives what is wanted out of what is read.

        Args:
            start: (outputs, num_read), float64, what the penalty pulls towards.
            ridge: Strength of the penalty.
            through: (outputs, num_wanted), float32; the matrix then gives the product of this and what is wanted.

        Returns:
            (outputs, num_read), float64.
        """
        cross = self._cross if through is None else through @ self._cross
        return ridge_regression(cross.double(), self._moment.double(), start.to(self._cross.device), ridge)


def ridge_regression(cross: Tensor, moment: Tensor, start: Tensor | None, ridge: float) -> Tensor:
    """Return the X that minimises E|y - X x|^2 + r |X - start|^2, r = ridge * mean diag E[x x^T].

    Where x is always zero, as what an expert reads that no token is sent to, that is `start`. Where E[x x^T] + r I has
    no Cholesky factor in the arguments' precision, because inputs depend on each other or sums were rounded, the
    penalty is raised tenfold, to at least 1e-8 and at most 10, until it has one.

    Args:
        cross: (outputs, inputs), E[y x^T].
        moment: (inputs, inputs), E[x x^T]; is overwritten, for it may be the largest thing in memory.
        start: (outputs, inputs), what the penalty pulls towards; None for zero.
        ridge: Strength of the penalty.

    Returns:
        (outputs, inputs), in the dtype of the arguments.

    Raises:
        CheckpointError: If the moments are not finite, so that no penalty helps.
    """
    mean = moment.diagonal().mean()
    if mean == 0:
        return torch.zeros_like(cross) if start is None else start
    missing = cross if start is None else cross - start @ moment
    moment.diagonal().add_(ridge * mean)
    factor, failed = torch.linalg.cholesky_ex(moment)
    while failed and ridge <= 1:
        raised = max(10 * ridge, _LEAST_RAISED_RIDGE)
        moment.diagonal().add_((raised - ridge) * mean)
        ridge = raised
        factor, failed = torch.linalg.cholesky_ex(moment)
    if failed or not mean.isfinite():
        raise CheckpointError(
            "what the model's layers read has no finite second moments; its activations overflow on this text, so give "
            "another text, or the model in a wider type"
        )
    del moment
    half = torch.linalg.solve_triangular(factor, missing.T, upper=False)  # cholesky_solve would copy the factor
    found: Tensor = torch.linalg.solve_triangular(factor.T, half, upper=True).T
    return found if start is None else start + found


def ridge_gain(products: Tensor, squares: Tensor, start: Tensor, ridge: float) -> Tensor:
    """Return the g that minimises E|y - g x|^2 + r |g - start|^2 for each entry, r = ridge * mean E[x^2].

    Args:
        products: (size,), E[y x].
        squares: (size,), E[x^2].
        start: (size,), what the penalty pulls towards.
        ridge: Strength of the penalty.
    """
    penalty = ridge * squares.mean()
    return (products + penalty * start) / (squares + penalty)
