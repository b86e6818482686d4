"""What a search weighs and what it insists on: objectives and constraints over a pool's columns; no torch."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minitron_nas.settings import BYTES, parse_count

Objective: TypeAlias = Literal["kl", "num_parameters", "memory_bytes", "prefill_seconds", "decode_seconds"]
"""What may be minimised; all but KL are known before anything is measured."""

COSTS = (
    "num_parameters",
    "num_active_parameters",
    "num_embedding_parameters",
    "forward_flops_per_token",
    "kv_cache_bytes_per_token",
    "state_bytes_per_sequence",
    "memory_bytes",
    "prefill_seconds",
    "decode_seconds",
    "prefill_speedup",
    "decode_speedup",
)
"""What may be constrained."""

TIMED = ("prefill_seconds", "decode_seconds", "prefill_speedup", "decode_speedup")
"""Those that a latency model predicts."""

_DEPLOYED = ("memory_bytes",)
_CONSTRAINT = re.compile(r"\s*(\w+)\s*(<=|>=)\s*([\d.]+(?:e\d+)?)\s*([a-z]*)\s*(?:at\s+(.*\S))?\s*", re.IGNORECASE)
_CONDITION = re.compile(r"(batch|context)\s+([\d.]+\s*[kmb]?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A bound on one column.

    Attributes:
        text: As it was written.
        column: One of `COSTS`.
        relation: `<=` or `>=`.
        limit: In the column's unit.
        batch_size: Sequences at a time that it is meant for; None for the plan's.
        context_tokens: Tokens of a sequence that it is meant for; None for the plan's.
    """

    text: str
    column: str
    relation: str
    limit: float
    batch_size: int | None = None
    context_tokens: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read such as `decode_speedup >= 1.6` or `memory_bytes <= 6GB at batch 8, context 32k`.

        Args:
            text: A column, `<=` or `>=`, a number with its unit, and perhaps what it is meant for.

        Raises:
            ValueError: If it cannot be read.
        """
        match = _CONSTRAINT.fullmatch(text)
        if match is None or match[1] not in COSTS or match[2] not in ("<=", ">="):
            raise ValueError(
                f"{text!r} is no constraint; write such as 'decode_speedup >= 1.6' or "
                f"'memory_bytes <= 6GB at batch 8, context 32k', with one of {', '.join(COSTS)}"
            )
        column, relation, number, unit, conditions = match.groups()
        given = _conditions(text, conditions) if conditions else {}
        if given and column not in _DEPLOYED:
            raise ValueError(f"{text!r}: batch and context are for {', '.join(_DEPLOYED)}, not for {column}")
        limit = _limit(text, column, number, unit.lower())
        return cls(" ".join(text.split()), column, relation, limit, given.get("batch"), given.get("context"))

    def keeps(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Say which values are allowed.

        Args:
            values: (num_candidates,), of its column.
        """
        kept: NDArray[np.bool_] = values <= self.limit if self.relation == "<=" else values >= self.limit
        return kept


def _conditions(text: str, conditions: str) -> dict[str, int]:
    given = {}
    for condition in conditions.split(","):
        match = _CONDITION.fullmatch(condition.strip())
        if match is None:
            raise ValueError(f"{text!r}: {condition.strip()!r} is not such as 'batch 8' or 'context 32k'")
        given[match[1].lower()] = _count(text, match[2])
    return given


def _limit(text: str, column: str, number: str, unit: str) -> float:
    if "bytes" in column:
        if unit and unit not in BYTES:
            raise ValueError(f"{text!r}: {unit!r} is no unit of bytes; choose from {', '.join(BYTES)}, such as 6GB")
        return float(Decimal(number) * BYTES[unit or "b"])
    if column in TIMED:
        scale = {"": 1.0, "s": 1.0, "ms": 1e-3} if column.endswith("_seconds") else {"": 1.0, "x": 1.0}
        if unit not in scale:
            raise ValueError(f"{text!r}: {column} is a number{' or such as 20ms' if 's' in scale else ' such as 1.6'}")
        return float(number) * scale[unit]
    return float(_count(text, f"{number}{unit}"))


def _count(text: str, written: str) -> int:
    try:
        return parse_count(written)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
