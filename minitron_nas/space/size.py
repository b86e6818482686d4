"""`Size`: how large a student is to be: in total parameters, in memory, or in speed over the teacher; no torch."""

import re
from dataclasses import dataclass
from decimal import Decimal
from math import floor
from typing import Literal, Self, TypeAlias

from minitron_nas.settings import BYTES, format_bytes, format_count, parse_count

Unit: TypeAlias = Literal["parameters", "memory", "prefill", "decode"]

_COLUMNS: dict[Unit, str] = {
    "parameters": "num_parameters",
    "memory": "memory_bytes",
    "prefill": "prefill_speedup",
    "decode": "decode_speedup",
}
_WORDS: dict[Unit, str] = {
    "parameters": "parameters",
    "memory": "of memory",
    "prefill": "of the teacher's prefill speed",
    "decode": "of the teacher's decode speed",
}
_EXAMPLES = "memory=6GB, decode=2.0x or prefill=1.5x"
_AMOUNT = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s*([a-z]*)", re.IGNORECASE)
_MOST_SPEEDUP = 1000


@dataclass(frozen=True, slots=True)
class Size:
    """How large a student is to be.

    Attributes:
        unit: `parameters`, in total; `memory`, of weights and KV cache; `prefill` or `decode`, the speed that is
            predicted over the first teacher's.
        value: Parameters, bytes, or times the teacher's speed.
    """

    unit: Unit
    value: float

    @classmethod
    def parse(cls, given: object) -> Self:
        """Read a size as people write it: 8e9, "4.5B", "memory=6GB", "decode=2.0x" or "prefill=1.5x".

        Args:
            given: What was written; a size stays as it is.

        Raises:
            ValueError: If it is no size.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, str) or "=" not in given:
            return cls("parameters", parse_count(given))
        unit, amount = (part.strip() for part in given.split("=", 1))
        if unit == "memory":
            return cls("memory", _bytes(given, amount))
        if unit in ("prefill", "decode"):
            return cls("prefill" if unit == "prefill" else "decode", _speedup(given, unit, amount))
        raise ValueError(
            f"size {given!r}: {unit!r} is no unit of a size; write total parameters, such as 4B, or {_EXAMPLES}"
        )

    @classmethod
    def of_label(cls, label: str) -> Self:
        """Read a size from its label.

        Args:
            label: As `label` returned it.

        Raises:
            ValueError: If it is no label of a size.
        """
        return cls.parse(label.replace("-", "=", 1))

    def __str__(self) -> str:
        """Say it as `parse` reads it: "4.5B", "memory=6GB", "decode=2.0x"."""
        if self.unit == "parameters":
            return format_count(int(self.value))
        return f"{self.unit}={format_bytes(int(self.value)) if self.unit == 'memory' else f'{self.value}x'}"

    @property
    def label(self) -> str:
        """What its models, files and folders are called: "4.5B", "memory-6GB", "decode-2.0x"."""
        return str(self).replace("=", "-")

    @property
    def written(self) -> int | str:
        """The size as a plan and fingerprints hold it, exactly."""
        return int(self.value) if self.unit == "parameters" else str(self)

    @property
    def column(self) -> str:
        """The cost of a shape that it bounds."""
        return _COLUMNS[self.unit]

    @property
    def is_speed(self) -> bool:
        """Whether it takes a latency model to know which shapes it has."""
        return self.unit in ("prefill", "decode")

    @property
    def rank(self) -> float:
        """Greater for the larger of two sizes of one unit; of two speeds the lower is the larger model's."""
        return -self.value if self.is_speed else self.value

    def window(self, tolerance: float) -> tuple[float, float]:
        """Return the least and greatest value that a shape of the size has.

        A number of parameters is a name, so that shapes may lie on both sides of it. Memory and speed are promises to
        whoever deploys the model: no shape breaks them, and what lies beyond is given away. All windows are twice the
        tolerance wide.

        Args:
            tolerance: The space's.
        """
        if self.unit == "parameters":
            return round(self.value * (1 - tolerance)), round(self.value * (1 + tolerance))
        if self.unit == "memory":
            return max(round(self.value * (1 - 2 * tolerance)), 0), self.value
        return self.value, self.value * (1 + 2 * tolerance)

    def is_below(self, source: float) -> bool:
        """Whether a model has to be cut to meet it.

        Args:
            source: The model's value in the unit of the size.
        """
        return source < self.value if self.is_speed else source > self.value

    def told(self, value: float) -> str:
        """Say a value in the unit of the size.

        Args:
            value: Of a shape; speeds are rounded down, so that a shape reaches what is told.
        """
        if self.unit == "parameters":
            return f"{value:,}"
        return format_bytes(int(value)) if self.unit == "memory" else f"{floor(round(value * 1000, 6)) / 1000}x"

    @property
    def words(self) -> str:
        """What follows a value: "parameters", "of memory", "of the teacher's decode speed"."""
        return _WORDS[self.unit]


def _bytes(given: str, amount: str) -> int:
    match = _AMOUNT.fullmatch(amount)
    if match is None or match[2].lower() not in BYTES:
        raise ValueError(f"size {given!r}: {amount!r} is no memory; write such as memory=6GB or memory=6GiB")
    if match[2].endswith("b") and not match[2].islower():
        raise ValueError(f"size {given!r}: {match[2]} stands for bits; write bytes, such as memory=6GB")
    num_bytes = round(Decimal(match[1]) * BYTES[match[2].lower()])
    if num_bytes < 1:
        raise ValueError(f"size {given!r} is no memory at all; write such as memory=6GB")
    return num_bytes


def _speedup(given: str, unit: str, amount: str) -> float:
    match = _AMOUNT.fullmatch(amount)
    if match is None or match[2].lower() not in ("", "x"):
        raise ValueError(f"size {given!r}: {amount!r} is no speed-up; write such as {unit}=2.0x")
    if not 1 < float(match[1]) <= _MOST_SPEEDUP:
        raise ValueError(
            f"size {given!r} is no speed that pruning gives; write a speed-up over the teacher above 1 and up to "
            f"{_MOST_SPEEDUP}, such as {unit}=2.0x"
        )
    return float(match[1])
