"""`Check`: one measure of a comparison, and whether it keeps to its limit."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from minitron_nas.evaluation.paired import within
from minitron_nas.storage.schemas import COMPARISON

Sense: TypeAlias = Literal["at most", "at least"]


@dataclass(frozen=True, slots=True)
class Check:
    """One measure and its limit, a row of `comparison.parquet`."""

    measure: str
    value: float | None
    limit: float | None = None
    sense: Sense = "at most"
    base: float | None = None
    other: float | None = None
    model: str | None = None
    words: str | None = None
    standard_error: float | None = None

    @property
    def passes(self) -> bool:
        """Whether the value keeps to the limit; what was not measured, or is no number, keeps to none.

        A value with a standard error is beyond its limit only where chance does not make that likely.
        """
        if self.limit is None:
            return True
        if self.value is None:
            return False
        lower, higher = (self.value, self.limit) if self.sense == "at most" else (self.limit, self.value)
        return within(lower, higher, self.standard_error or 0.0)

    @property
    def told(self) -> str:
        """The same in words."""
        if self.words is not None:
            return self.words
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        if self.value is not None and self.standard_error is not None:
            same = within(abs(self.value), 0.0, self.standard_error)
            value += f" ± {self.standard_error:.2g}{' (no different)' if same else ''}"
        return value if self.limit is None else f"{value}, {self.sense} {self.limit:.4g}"

    def to_row(self) -> dict[str, Any]:
        """Return its row of the table."""
        names = [column.name for column in COMPARISON.columns]
        return {name: getattr(self, name) for name in names}


def ratio(base: float | None, other: float | None) -> float | None:
    """Return the second over the first; None where one was not measured, or the first is 0.

    Args:
        base: Of the first.
        other: Of the second.
    """
    return None if not base or other is None else other / base


def rise(base: float | None, other: float | None) -> float | None:
    """Return the second less the first; None where one was not measured.

    Args:
        base: Of the first.
        other: Of the second.
    """
    return None if base is None or other is None else other - base
