"""`Costing`: what shapes that are cut from one model cost, in parameters, memory and time; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minitron_nas.architecture.costs import Columns, costs_of
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import PlanError, SpaceError
from minitron_nas.space.enumerate import Measure, parameters_of
from minitron_nas.space.size import Size

Values: TypeAlias = NDArray[np.float64]

BYTES_PER_PARAMETER = 2
"""Of weights in half precision."""

_MOST_TOKENS = 10**10
"""Whose keys, values and states 64 bits can count the bytes of, whatever the model."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a model's memory is counted for.

    Attributes:
        batch_size: Sequences at a time.
        context_tokens: Tokens of each, which keys and values are kept of.

    Raises:
        PlanError: If that is more tokens than any device holds.
    """

    batch_size: int
    context_tokens: int

    def __post_init__(self) -> None:
        """Refuse what 64 bits cannot count."""
        if self.batch_size * self.context_tokens > _MOST_TOKENS:
            raise PlanError(
                f"memory is to be counted for {self.batch_size:,} sequences of {self.context_tokens:,} tokens; ask for "
                f"at most {_MOST_TOKENS:,} tokens together"
            )

    def memory_bytes(self, costs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the bytes of weights, keys, values and states.

        Args:
            costs: `num_parameters`, `kv_cache_bytes_per_token` and `state_bytes_per_sequence`, (num_shapes,) each.
        """
        sequence = self.context_tokens * costs["kv_cache_bytes_per_token"] + costs["state_bytes_per_sequence"]
        total: NDArray[Any] = BYTES_PER_PARAMETER * costs["num_parameters"] + self.batch_size * sequence
        return total


class Latency(Protocol):
    """Predicts how long shapes take."""

    def predict(self, columns: Columns) -> Mapping[str, Values]:
        """Return `prefill_seconds` and `decode_seconds`, an array each.

        Args:
            columns: An array for each prunable size, all of one length.
        """


@dataclass(frozen=True, slots=True)
class Costing:
    """What shapes that are cut from one model cost.

    Attributes:
        source: The model's shape.
        layout: The table of its family.
        attended_tokens: Mean number of tokens attended to, for the FLOPs.
        deployment: What memory is counted for.
        latency: Predicts seconds; without it there are no such columns.
        against: The shape that speed-ups are relative to; the source without it.
    """

    source: Architecture
    layout: Layout
    attended_tokens: int
    deployment: Deployment
    latency: Latency | None = None
    against: Architecture | None = None

    def columns(self, sizes: Columns) -> dict[str, NDArray[Any]]:
        """Return all that is known of many shapes.

        Args:
            sizes: (num_shapes,) for each prunable size of the family.

        Returns:
            (num_shapes,) by name: the sizes, what `costs_of` names, `memory_bytes`, and where there is a latency model
            seconds and speed-ups.
        """
        columns = {**sizes, **costs_of(self.layout, self.source, sizes, self.attended_tokens)}
        columns["memory_bytes"] = self.deployment.memory_bytes(columns)
        return columns | (self._timed(self.latency, sizes) if self.latency is not None else {})

    def can_measure(self, size: Size) -> bool:
        """Whether it is known what shapes have in the unit of a size."""
        return self.latency is not None or not size.is_speed

    def measure(self, size: Size) -> Measure:
        """Return what tells the value of many shapes in the unit of a size.

        Raises:
            SpaceError: If that takes a latency model, and there is none.
        """
        latency = self.latency
        if size.unit == "parameters":
            return lambda sizes: parameters_of(sizes, self.source, self.layout)
        if size.unit == "memory":
            return self._memory
        if latency is None:
            raise needs_latency(f"size {size}")
        return lambda sizes: self._timed(latency, sizes)[size.column]

    def _memory(self, sizes: Columns) -> NDArray[Any]:
        return self.deployment.memory_bytes(costs_of(self.layout, self.source, sizes, self.attended_tokens))

    def _timed(self, latency: Latency, sizes: Columns) -> dict[str, NDArray[Any]]:
        against = self.against or self.source
        predicted = latency.predict(sizes)
        reference = latency.predict({name: np.array([getattr(against, name)]) for name in sizes})
        speedups = {
            f"{phase}_speedup": reference[f"{phase}_seconds"][0] / predicted[f"{phase}_seconds"]
            for phase in ("prefill", "decode")
        }
        return {**predicted, **speedups}


def needs_latency(what: str) -> SpaceError:
    """Return the refusal of what only a latency model can tell.

    Args:
        what: A size, or a constraint.
    """
    return SpaceError(
        f"{what}: that needs a latency model; `minitron-nas latency TEACHER --out FILE` makes one, and "
        "search.latency=FILE names it"
    )
