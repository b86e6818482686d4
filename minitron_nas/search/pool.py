"""`Pool`: every candidate of a size that the constraints allow, with what each costs, as arrays; no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import SpaceError
from minitron_nas.search.costing import Costing, Deployment, Values, needs_latency
from minitron_nas.search.objectives import TIMED, Constraint
from minitron_nas.space.enumerate import Candidates, Enumeration


@dataclass(frozen=True, slots=True)
class Pool:
    """The candidates of a size, and what each costs.

    Attributes:
        source: The shape that they are cut from.
        candidates: In the order of the enumeration.
        columns: Arrays by name, (num_candidates,), as `Costing.columns` returns them.
        excluded: How many shapes each constraint left out, by its text.
    """

    source: Architecture
    candidates: Candidates
    columns: Mapping[str, NDArray[Any]]
    excluded: Mapping[str, int]

    @classmethod
    def of(cls, found: Enumeration, costing: Costing, constraints: Sequence[Constraint] = ()) -> "Pool":
        """Cost every candidate and leave out what the constraints forbid.

        Args:
            found: All shapes of the size.
            costing: Says what they cost; memory is counted for its deployment where a constraint does not say so
                itself.
            constraints: What is allowed.

        Raises:
            SpaceError: If nothing is left, or a constraint needs a latency model and there is none; says which and how
                near the candidates come.
        """
        source, columns = costing.source, costing.columns(found.candidates.columns())
        kept, excluded = np.ones(len(found.candidates), dtype=bool), {}
        for constraint in constraints:
            values = _constrained(constraint, columns, costing.deployment)
            allowed = constraint.keeps(values)
            if not np.any(kept & allowed):
                raise SpaceError(_nothing_left(constraint, values[kept]))
            excluded[constraint.text] = int(np.count_nonzero(kept & ~allowed))
            kept &= allowed
        if kept.all():
            return cls(source, found.candidates, columns, excluded)
        indices = np.flatnonzero(kept)
        return cls(
            source, found.candidates.taken(indices), {name: each[indices] for name, each in columns.items()}, excluded
        )

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.candidates)

    def features(self) -> Values:
        """Return where the candidates lie: log of each size that varies, as a share of the source's.

        Returns:
            (num_candidates, num_axes).
        """
        logs = [np.log(self.columns[name].astype(float) / getattr(self.source, name)) for name in self._axes()]
        return np.stack(logs, axis=1) if logs else np.zeros((len(self), 0))

    def places(self, shapes: Sequence[Mapping[str, int | None]]) -> list[Values | None]:
        """Return where shapes of other sizes would lie among the features, (num_axes,) each.

        Args:
            shapes: The sizes of each, by name.

        Returns:
            None for one that has a size of its own that all candidates share another of.
        """
        axes = self._axes()
        shared = {
            name: self.columns[name][0] for name in self.source.sizes() if name in self.columns and name not in axes
        }
        return [
            np.log([float(sizes[name] or 0) / getattr(self.source, name) for name in axes])
            if all(sizes[name] == value for name, value in shared.items())
            else None
            for sizes in shapes
        ]

    def _axes(self) -> list[str]:
        return [name for name in self.source.sizes() if name in self.columns and np.ptp(self.columns[name])]

    def costs(self, names: Sequence[str]) -> Values:
        """Return some columns side by side, (num_candidates, num_names).

        Args:
            names: Of columns.
        """
        return (
            np.stack([self.columns[name].astype(float) for name in names], axis=1)
            if names
            else np.zeros((len(self), 0))
        )


def _constrained(constraint: Constraint, columns: Mapping[str, NDArray[Any]], deployment: Deployment) -> NDArray[Any]:
    if constraint.column in TIMED and constraint.column not in columns:
        raise needs_latency(constraint.text)
    if constraint.batch_size is None and constraint.context_tokens is None:
        return columns[constraint.column]
    batch_size = constraint.batch_size or deployment.batch_size
    return Deployment(batch_size, constraint.context_tokens or deployment.context_tokens).memory_bytes(columns)


def _nothing_left(constraint: Constraint, values: NDArray[Any]) -> str:
    nearest = values.min() if constraint.relation == "<=" else values.max()
    return (
        f"no candidate keeps to {constraint.text}: of {len(values):,} the nearest has "
        f"{constraint.column}={nearest:,.4g}; loosen the constraint, widen the space's axes, or choose another size"
    )
