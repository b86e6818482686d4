"""What a student keeps of a dimension: all entries, some of them, or fewer that are mixed from them."""

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Indices: TypeAlias = NDArray[np.integer[Any]]
"""(num_kept,), the ascending indices of the entries that stay."""


class Digest(Protocol):
    """A hash that takes bytes one after the other, as those of hashlib do."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""


class Mix(Protocol):
    """A linear map from the entries of a dimension to fewer."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(size, num_kept)."""

    def matrix(self) -> Tensor:
        """Return the map, (size, num_kept), float64."""

    def update(self, digest: Digest) -> None:
        """Feed a hash with what decides the map."""


Kept: TypeAlias = Indices | Mix | None
"""What a student keeps of one dimension of a teacher's tensor; None where all entries stay."""
