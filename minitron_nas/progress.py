"""The one-line protocol by which long functions say how far they are."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total), both in the unit of the caller's loop; `done` never decreases."""


def silent(done: int, total: int) -> None:
    """Report to nobody."""
