"""Reading or making what will be wanted next while what was wanted is worked on."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, cast

Batch = TypeVar("Batch")


class ReadAhead(Generic[Batch]):
    """A function that reads batches of records, with one batch read ahead in a thread of its own.

    Which one is guessed: after 0 to 3 come 4 to 7, and after 0 to 3 and 8 to 11, as one of two processes reads them,
    come 16 to 19. A guess that was wrong costs a read, and a read ahead that failed is done again when it is asked for.
    """

    def __init__(self, read: Callable[[Sequence[int]], Batch], num_records: int) -> None:
        """Read nothing yet.

        Args:
            read: Reads the records of these numbers; it is called in another thread too.
            num_records: How many there are; behind the last comes the first.
        """
        self._read, self._num_records = read, num_records
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
        self._last: list[int] = []
        self._next: tuple[list[int], Future[Batch]] | None = None

    def __call__(self, records: Sequence[int]) -> Batch:
        """Return what is asked for, and begin to read what may come behind it.

        Args:
            records: Their numbers.
        """
        wanted, ahead, self._next = list(records), self._next, None
        guessed = ahead is not None and ahead[0] == wanted and ahead[1].exception() is None
        found = ahead[1].result() if ahead is not None and guessed else self._read(wanted)
        step = wanted[0] - self._last[0] if len(self._last) == len(wanted) else len(wanted)
        following = [(record + step) % self._num_records for record in wanted]
        self._last = wanted
        self._next = (following, self._pool.submit(self._read, following))
        return found


def made_ahead(items: Iterable[Batch], number: int) -> Generator[Batch]:
    """Yield items that a thread of its own makes, some of them before they are asked for.

    Args:
        items: What makes them, one after the other.
        number: How many are made ahead at most.
    """
    iterator, end = (item for item in items), object()  # a generator has ended when it has failed
    with ThreadPoolExecutor(1, thread_name_prefix="make ahead") as pool:
        coming = deque(pool.submit(next, iterator, end) for _ in range(number))
        try:
            while (item := coming.popleft().result()) is not end:
                coming.append(pool.submit(next, iterator, end))
                yield cast(Batch, item)
        finally:
            pool.shutdown(cancel_futures=True)
