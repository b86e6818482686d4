"""Reading ahead: what is asked for comes, whatever was guessed."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest

from minitron_nas.storage.ahead import ReadAhead, made_ahead


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


def test_what_is_made_ahead_comes_in_order_and_is_never_more_than_was_allowed() -> None:
    made: list[int] = []
    entered = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in range(6):
            made.append(number)
            entered.release()
            yield number

    with closing(made_ahead(items(), 2)) as ahead:
        for number in range(6):
            assert next(ahead) == number
            assert number < len(made) <= min(number + 3, 6)
            if number == 0:
                assert all(entered.acquire(timeout=60) for _ in range(3))
        assert list(ahead) == []


def test_what_fails_ahead_fails_where_it_is_asked_for_and_nothing_is_made_after_it() -> None:
    made = []

    def item(number: int) -> int:
        made.append(number)
        if number == 1:
            raise OSError("broken")
        return number

    ahead = made_ahead(map(item, range(9)), 4)
    assert next(ahead) == 0
    with pytest.raises(OSError, match="broken"):
        next(ahead)
    assert made == [0, 1]


def test_nothing_is_made_any_more_when_nobody_asks() -> None:
    begun, go_on = threading.Event(), threading.Event()
    made = []

    def items() -> Iterator[int]:
        for number in range(9):
            made.append(number)
            if number == 1:
                begun.set()
                go_on.wait(60)
            yield number

    ahead = made_ahead(items(), 4)
    assert next(ahead) == 0
    assert begun.wait(60)
    threading.Timer(0.1, go_on.set).start()
    ahead.close()
    assert made == [0, 1]
