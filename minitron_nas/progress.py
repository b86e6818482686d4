"""The one-line protocol by which long functions say how far they are."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total), both in the unit of the caller's loop; `done` never decreases."""


def silent(done: int, total: int) -> None:
    """Report to nobody."""


def one_of(progress: Progress, number: int, count: int) -> Progress:
    """Return what tells of one of several works of about the same size, done one after the other.

    Args:
        progress: Told of all of them.
        number: Which, from 0.
        count: How many there are.
    """
    return lambda done, total: progress(number * total + done, count * total)


def part_of(progress: Progress, before: int, total: int) -> Progress:
    """Return what tells of one part of some work, among others.

    Args:
        progress: Told of all of it.
        before: How much there is before that part.
        total: How much there is.
    """
    return lambda done, _: progress(before + done, total)
