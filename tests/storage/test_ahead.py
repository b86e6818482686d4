"""Reading ahead: what is asked for comes, whatever was guessed."""

import threading
from collections.abc import Sequence

import pytest

from minitron_nas.storage.ahead import ReadAhead


class Records:
    """Reads numbers, and remembers which, and whether in another thread."""

    def __init__(self) -> None:
        self.read: list[tuple[list[int], bool]] = []
        self.broken: set[int] = set()
        self.done = threading.Semaphore(0)

    def __call__(self, records: Sequence[int]) -> list[int]:
        self.read.append((list(records), threading.current_thread() is threading.main_thread()))
        self.done.release()
        if self.broken & set(records):
            raise OSError("broken")
        return [10 * record for record in records]

    @property
    def by_caller(self) -> list[list[int]]:
        return [records for records, here in self.read if here]


def asked(ahead: ReadAhead[list[int]], batches: list[list[int]]) -> None:
    for batch in batches:
        assert ahead(batch) == [10 * record for record in batch]


@pytest.mark.parametrize(
    ("batches", "by_caller"),
    [
        ([[0, 1], [2, 3], [4, 5], [0, 1]], [[0, 1]]),  # in order, and from the beginning again
        ([[0, 1], [4, 5], [4, 5]], [[0, 1], [4, 5], [4, 5]]),
        ([[2], [4], [0], [2]], [[2], [4]]),  # every second one, of two processes
        ([[0, 1, 2, 3], [4, 5]], [[0, 1, 2, 3], [4, 5]]),
    ],
)
def test_what_follows_is_read_ahead_and_what_does_not_is_read_when_it_is_asked_for(
    batches: list[list[int]], by_caller: list[list[int]]
) -> None:
    records = Records()
    asked(ReadAhead(records, 6), batches)
    assert records.by_caller == by_caller


def test_a_guess_that_fails_is_an_error_only_where_it_is_asked_for() -> None:
    records = Records()
    ahead = ReadAhead(records, 6)
    records.broken = {2}
    asked(ahead, [[0, 1], [4, 5]])
    with pytest.raises(OSError, match="broken"):
        ahead([2, 3])
    records.broken = set()
    asked(ahead, [[2, 3], [4, 5]])


def test_what_failed_ahead_is_read_again_when_it_is_asked_for() -> None:
    records = Records()
    ahead = ReadAhead(records, 6)
    records.broken = {2}
    ahead([0, 1])
    assert records.done.acquire(timeout=10)
    assert records.done.acquire(timeout=10)
    records.broken = set()
    asked(ahead, [[2, 3], [4, 5]])
    assert records.by_caller == [[0, 1], [2, 3]]


def test_one_batch_is_under_way_while_the_caller_works() -> None:
    records = Records()
    ahead = ReadAhead(records, 100)
    ahead([0, 1])
    assert records.done.acquire(timeout=10)
    assert records.done.acquire(timeout=10)
    assert [batch for batch, _ in records.read] == [[0, 1], [2, 3]]
