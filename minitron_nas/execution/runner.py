"""The seam between the search and where it runs.

A runner is handed a picklable function and a list of jobs, and knows no stage; Ray and this process
are interchangeable behind it.
"""

import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeAlias

from minitron_nas.errors import MachineError, TrialError
from minitron_nas.execution.deadline import Deadline, OverdueError
from minitron_nas.execution.device import release_memory
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.machine import machine_error, quoted_fault
from minitron_nas.storage.sealed import read_sealed, write_sealed

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "allocate memory", "alloc_failed", "low on memory")
"""How torch, the libraries below it, the operating system and Ray say it."""

Status: TypeAlias = Literal["completed", "infeasible", "timeout", "failed", "machine"]

JobFunction: TypeAlias = Callable[..., Mapping[str, Any]]
"""A module-level function that takes a job's arguments and returns plain values."""


@dataclass(frozen=True, slots=True)
class Job:
    """One call of a function.

    Attributes:
        key: Safe as a file name.
        arguments: Keyword arguments of plain values.
        slowest_seconds: What the slowest of its kind took that had ended before; None if none had.
    """

    key: str
    arguments: Mapping[str, Any]
    slowest_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        key: The job's key.
        status: `infeasible` means out of memory: the shape does not fit, which is no defect; `timeout` that it was
            given up; `machine` that the disk or another part of the machine failed, which says nothing about the job
            and stops all of them.
        value: What the function returned, if completed.
        error: The traceback, if not; of the machine's faults one line.
        seconds: Wall time of the call.
        began: When it was called, in seconds since 1970 (UTC) by the clock of its machine; None where nobody knows.
    """

    key: str
    status: Status
    value: Mapping[str, Any] | None
    error: str | None
    seconds: float
    began: float | None = None

    def number(self, name: str) -> float | None:
        """Return a number of what the function returned; None if the job did not complete.

        Args:
            name: Its key.
        """
        return None if self.value is None else self.value[name]


@dataclass(frozen=True, slots=True)
class Tally:
    """How the jobs of a call stand.

    Attributes:
        keys: Of all of them.
        running: How many run, as far as there is room for them.
        ended: What has become of those that do not run any more, by key.
    """

    keys: Sequence[str]
    running: int
    ended: Mapping[str, Outcome]


class Runner(Protocol):
    """Executes jobs, in any order, on one or many machines."""

    def room(self) -> int:
        """Return how many jobs run at once."""

    def held(self) -> AbstractContextManager[None]:
        """Keep what is started for a call until the block ends, for the calls in it."""

    def execute(self, function: JobFunction, jobs: Sequence[Job], on_outcome: Callable[[Outcome], None]) -> None:
        """Run every job and hand over each outcome as soon as it is there.

        Args:
            function: What the jobs run.
            jobs: With distinct keys.
            on_outcome: Called in this process; what it raises ends the call.
        """


def slowest_before(jobs: Iterable[Job]) -> float | None:
    """Return what the slowest of their kind took that had ended before any of these jobs; None if none had.

    Args:
        jobs: Of one kind.
    """
    return max((job.slowest_seconds or 0.0 for job in jobs), default=0.0) or None


def attempt(function: JobFunction, job: Job, deadline: Deadline | None = None) -> Outcome:
    """Call the function and turn any exception into an outcome.

    Args:
        function: What the job runs.
        job: Its arguments.
        deadline: When it is given up.
    """
    began, started = time.time(), time.perf_counter()
    try:
        with deadline.enforced() if deadline is not None else nullcontext():
            value = function(**job.arguments)
        return Outcome(job.key, "completed", dict(value), None, time.perf_counter() - started, began)
    except OverdueError as error:
        return Outcome(job.key, "timeout", None, str(error), time.perf_counter() - started, began)
    except Exception as error:  # noqa: BLE001  # whatever a trial does, the others go on
        seconds = time.perf_counter() - started
        if (fault := machine_error(error)) is not None:
            return Outcome(job.key, "machine", None, str(fault), seconds, began)
        status: Status = "infeasible" if is_out_of_memory(error) else "failed"
        return Outcome(job.key, status, None, traceback.format_exc(), seconds, began)
    finally:
        release_memory()  # a worker may go on to the next job, and trainers hold their models in cycles


def lost(key: str, said: str, began: float | None = None) -> Outcome:
    """Return the outcome of a job whose worker was lost for good.

    Args:
        key: The job's key.
        said: What is known of the loss.
        began: When it was begun last, if anyone knows.
    """
    if (words := quoted_fault(said)) is not None:
        return Outcome(key, "machine", None, f"{words}; mend that and repeat the command", 0.0, began)
    status: Status = "infeasible" if says_out_of_memory(said) else "failed"
    return Outcome(key, status, None, f"the worker was lost: {said}", 0.0, began)


@dataclass(frozen=True, slots=True)
class Jobs:
    """Where jobs run, where their results are kept, and how many of them may fail.

    Attributes:
        runner: Where they run.
        results: Folder of one file per finished job; a repeated call runs only what is missing. Jobs that did not
            complete leave no file and are tried again, perhaps with more memory.
        max_failures: More failed jobs than this stop the search.
        watch: Told how they stand whenever one has ended; nobody is without it.
    """

    runner: Runner
    results: Path
    max_failures: int
    watch: Callable[[Tally], None] | None = None

    def within(self, folder: str) -> Self:
        """Return the same with results in a folder of their own within this one.

        Args:
            folder: Its name.
        """
        return replace(self, results=self.results / folder)

    def run(self, function: JobFunction, jobs: Sequence[Job], progress: Progress = silent) -> dict[str, Outcome]:
        """Run the jobs that have no result yet and return the outcomes of all, by key, in the jobs' order.

        Args:
            function: What they run.
            jobs: With distinct keys.
            progress: Told about jobs.

        Raises:
            TrialError: If too many jobs failed; the message ends with the last traceback's last line.
            MachineError: If a disk is full, read-only, failing or gone, here or where a job ran.
        """
        known = {job.key: self._kept(job.key) for job in jobs}
        outcomes = {key: outcome for key, outcome in known.items() if outcome is not None}
        room = self.runner.room() if self.watch is not None and len(outcomes) < len(jobs) else 0

        def tell() -> None:
            if self.watch is not None:
                self.watch(Tally([job.key for job in jobs], min(room, len(jobs) - len(outcomes)), outcomes))
            progress(len(outcomes), len(jobs))

        def keep(outcome: Outcome) -> None:
            if outcome.status == "machine":
                raise MachineError(f"trial {outcome.key}: {outcome.error}")
            outcomes[outcome.key] = outcome
            if outcome.status == "completed":
                write_sealed(self._file(outcome.key), asdict(outcome))
            tell()
            _stop_if_hopeless(outcomes, self.max_failures, len(jobs))

        tell()
        slowest = max((outcome.seconds for outcome in outcomes.values()), default=None)
        remaining = [replace(job, slowest_seconds=slowest) for job in jobs if job.key not in outcomes]
        if remaining:
            self.runner.execute(function, remaining, keep)
        return {job.key: outcomes[job.key] for job in jobs}

    def _file(self, key: str) -> Path:
        return self.results / f"{key}.json"

    def _kept(self, key: str) -> Outcome | None:
        """Return the outcome of an earlier call; a file that is not what was written there is as good as none."""
        content = read_sealed(self._file(key))
        return None if content is None or content.get("key") != key else Outcome(**content)


def last_line(error: str | None) -> str | None:
    """Return the last line of a traceback, which names the error.

    Args:
        error: The traceback, if there is one.
    """
    return error.strip().splitlines()[-1] if error and error.strip() else None


def _stop_if_hopeless(outcomes: Mapping[str, Outcome], max_failures: int, num_jobs: int) -> None:
    failed = [outcome for outcome in outcomes.values() if outcome.status == "failed"]
    if len(failed) > max_failures or len(failed) == num_jobs:
        raise TrialError(
            f"{len(failed)} of {num_jobs} trials failed, more than runner.max_failures={max_failures} allows or all "
            f"of them; the last one: {last_line(failed[-1].error)}\n{failed[-1].error}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough, of the device or of the machine.

    Args:
        error: Whatever was raised.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and says_out_of_memory(str(error))


def says_out_of_memory(text: str) -> bool:
    """Whether words of an error say that memory was not enough.

    Args:
        text: The error's words, or a traceback.
    """
    return any(words in text.lower() for words in _OUT_OF_MEMORY)
