"""`Pool`: every candidate of a size that the constraints allow, with what each costs, as arrays; no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minitron_nas.architecture.costs import Columns, costs_of
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import SpaceError
from minitron_nas.search.objectives import TIMED, Constraint
from minitron_nas.space.enumerate import Candidates, Enumeration

Values: TypeAlias = NDArray[np.float64]

BYTES_PER_PARAMETER = 2
"""Of weights in half precision."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a model's memory is counted for.

    Attributes:
        batch_size: Sequences at a time.
        context_tokens: Tokens of each that keys and values are kept of.
    """

    batch_size: int
    context_tokens: int


class Latency(Protocol):
    """Predicts how long shapes take."""

    def predict(self, columns: Columns) -> Mapping[str, Values]:
        """Return `prefill_seconds` and `decode_seconds`, an array each.

        Args:
            columns: An array for each prunable size, all of one length.
        """


@dataclass(frozen=True, slots=True)
class Pool:
    """The candidates of a size, and what each costs.

    Attributes:
        source: The shape that they are cut from.
        candidates: In the order of the enumeration.
        columns: Arrays by name, (num_candidates,): the prunable sizes, what `costs_of` names,
            `memory_bytes`, and where there is a latency model seconds and speed-ups.
        excluded: How many shapes each constraint left out, by its text.
    """

    source: Architecture
    candidates: Candidates
    columns: Mapping[str, NDArray[Any]]
    excluded: Mapping[str, int]

    @classmethod
    def of(
        cls,
        found: Enumeration,
        source: Architecture,
        layout: Layout,
        attended_tokens: int,
        deployment: Deployment,
        constraints: Sequence[Constraint] = (),
        latency: Latency | None = None,
        against: Architecture | None = None,
    ) -> "Pool":
        """Cost every candidate and leave out what the constraints forbid.

        Args:
            found: All shapes of the size.
            source: The shape that they are cut from.
            layout: The table of its family.
            attended_tokens: Mean number of tokens attended to, for the FLOPs.
            deployment: What memory is counted for where a constraint does not say so itself.
            constraints: What is allowed.
            latency: Predicts seconds; without it there are no such columns.
            against: The shape that speed-ups are relative to; the source without it.

        Raises:
            SpaceError: If nothing is left, or a constraint needs a latency model and there is none; says which and how
                near the candidates come.
        """
        sizes = found.candidates.columns()
        columns: dict[str, NDArray[Any]] = {**sizes, **costs_of(layout, source, sizes, attended_tokens)}
        columns["memory_bytes"] = _memory(columns, deployment)
        if latency is not None:
            columns |= _timed(latency, sizes, against or source)
        kept, excluded = np.ones(len(found.candidates), dtype=bool), {}
        for constraint in constraints:
            values = _constrained(constraint, columns, deployment)
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
        axes = [name for name in self.source.sizes() if name in self.columns and np.ptp(self.columns[name])]
        logs = [np.log(self.columns[name].astype(float) / getattr(self.source, name)) for name in axes]
        return np.stack(logs, axis=1) if logs else np.zeros((len(self), 0))

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


def _memory(columns: Mapping[str, NDArray[Any]], deployment: Deployment) -> NDArray[Any]:
    weights: NDArray[Any] = BYTES_PER_PARAMETER * columns["num_parameters"]
    cached = deployment.batch_size * deployment.context_tokens
    total: NDArray[Any] = weights + cached * columns["kv_cache_bytes_per_token"]
    return total


def _timed(latency: Latency, sizes: Columns, against: Architecture) -> dict[str, NDArray[Any]]:
    predicted = latency.predict(sizes)
    reference = latency.predict({name: np.array([getattr(against, name)]) for name in sizes})
    speedups = {
        f"{phase}_speedup": reference[f"{phase}_seconds"][0] / predicted[f"{phase}_seconds"]
        for phase in ("prefill", "decode")
    }
    return {**predicted, **speedups}


def _constrained(constraint: Constraint, columns: Mapping[str, NDArray[Any]], deployment: Deployment) -> NDArray[Any]:
    if constraint.column in TIMED and constraint.column not in columns:
        raise SpaceError(f"{constraint.text}: that needs a latency model")
    if constraint.batch_size is None and constraint.context_tokens is None:
        return columns[constraint.column]
    batch_size = constraint.batch_size or deployment.batch_size
    return _memory(columns, Deployment(batch_size, constraint.context_tokens or deployment.context_tokens))


def _nothing_left(constraint: Constraint, values: NDArray[Any]) -> str:
    nearest = values.min() if constraint.relation == "<=" else values.max()
    return (
        f"no candidate keeps to {constraint.text}: of {len(values):,} the nearest has "
        f"{constraint.column}={nearest:,.4g}; loosen the constraint, widen the space's axes, or choose another size"
    )
