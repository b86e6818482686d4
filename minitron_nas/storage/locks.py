"""Locks with an owner: which command works in a folder, and which processes that it has started still write there.

Two files belong to a lock. The command holds the one alone. Each process that works for it shares the other,
for as long as it may write: a command that was killed leaves the first lock at once, and the second only when
all its processes have ended. The kernel frees both, whatever ends a process.
"""

import fcntl
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

import psutil

from minitron_nas.errors import RunFolderError

_POLL_SECONDS = 0.1
_LEAVING_SECONDS = 10.0
"""What processes without a command are given to end by themselves."""

_LAST_SECONDS = 20.0
"""After which a folder is refused that they still write to."""

_writers: ContextVar[Path | None] = ContextVar("writers", default=None)


@dataclass(frozen=True)
class Process:
    """A process of a machine, which no later one with its number is taken for."""

    pid: int
    started: float
    machine: str
    command: str

    @classmethod
    def current(cls) -> Self:
        """Return this process."""
        name = Path(sys.argv[0]).name
        if name in ("__main__.py", "minitron-nas"):
            name = " ".join(["minitron-nas", *sys.argv[1:2]])
        return cls(os.getpid(), _birth(os.getpid()) or 0.0, platform.node(), name or "python")

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return a process of this machine, or None if it has ended.

        Args:
            pid: Its number.
        """
        started = _birth(pid)
        return None if started is None else cls(pid, started, platform.node(), "")

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.machine == platform.node()

    @property
    def is_gone(self) -> bool:
        """Whether it has ended; of another machine's nothing is known."""
        return self.is_here and _birth(self.pid) != self.started

    def __str__(self) -> str:
        """Name it for people."""
        return f"process {self.pid} ({self.command}) on {self.machine}"


@dataclass(frozen=True, slots=True)
class Starter:
    """Who has started a process, as that process is told.

    Attributes:
        process: The starter.
        writers: What is shared by those who write to the folder that the work is for; None if there is no lock.
    """

    process: Process
    writers: Path | None

    @classmethod
    def current(cls) -> Self:
        """Return what this process tells those that it starts now."""
        return cls(Process.current(), _writers.get())

    def to_json(self) -> str:
        """Return it as a line, such as for an environment variable."""
        return json.dumps({"process": asdict(self.process), "writers": self.writers and str(self.writers)})

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read what `to_json` returned.

        Args:
            line: The line.
        """
        values = json.loads(line)
        return cls(Process(**values["process"]), Path(values["writers"]) if values["writers"] else None)

    @contextmanager
    def joined(self, task: str = "") -> Iterator[None]:
        """Work for the starter in this block: who takes its folder afterwards waits until the block is left.

        Args:
            task: What is worked at, for `writing`.
        """
        if self.writers is None:
            yield
            return
        with open(self.writers, "a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            file.write(json.dumps({"process": asdict(Process.current()), "task": task}) + "\n")
            file.flush()
            token = _writers.set(self.writers)
            try:
                yield
            finally:
                _writers.reset(token)


def writing(task: str) -> list[Process]:
    """Return who has begun a task in the folder whose lock is held in this context, the latest first.

    Args:
        task: What `joined` was told.
    """
    path = _writers.get()
    return [process for process, told in reversed(_read_writers(path)) if told == task] if path is not None else []


@contextmanager
def held(lock: Path, folder: Path) -> Iterator[None]:
    """Hold a folder for this command while the block runs.

    What an earlier command's processes still write there is waited for; on this machine they are ended if they
    do not end by themselves.

    Args:
        lock: Its lock; beside it lies `LOCK.writers` while processes work.
        folder: What it is the lock of, for messages.

    Raises:
        RunFolderError: If the lock cannot be written, another command holds it, or processes do not end.
    """
    writers = lock.with_name(f"{lock.name}.writers").absolute()
    with _taken(lock, folder) as file:
        file.truncate(0)
        file.write(json.dumps(asdict(Process.current())))
        file.flush()
        _wait_for_writers(writers, folder)
        token = _writers.set(writers)
        try:
            yield
        finally:
            _writers.reset(token)


def refuse_held(lock: Path, folder: Path) -> None:
    """Refuse a folder that another command holds by another lock.

    Args:
        lock: That lock, which need not exist.
        folder: For the message.

    Raises:
        RunFolderError: If it is held.
    """
    if lock.exists():
        with _taken(lock, folder):
            pass


def release(lock: Path) -> None:
    """Remove the files of a lock that this process holds; what its processes still share stays for the next command.

    Args:
        lock: The lock.
    """
    writers = lock.with_name(f"{lock.name}.writers")
    with suppress(FileNotFoundError, BlockingIOError), open(writers, encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        writers.unlink()
    lock.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait for others that do the same, and hold them up while the block runs; the file goes at the end.

    Args:
        lock: A file whose folder is made.

    Raises:
        RunFolderError: If the lock cannot be written.
    """
    while True:
        with _file(lock, lock.parent) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, lock):  # who held it before has removed it
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


@contextmanager
def _taken(lock: Path, folder: Path) -> Iterator[IO[str]]:
    patience = time.monotonic() + _LEAVING_SECONDS
    while True:
        with _file(lock, folder) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = _owner(file)
                if owner is None or not owner.is_gone or time.monotonic() > patience:
                    who = "another process" if owner is None else str(owner)
                    raise RunFolderError(f"{folder} is in use by {who}; wait for it or choose another --out") from None
                time.sleep(_POLL_SECONDS)
                continue
            if _is_at(file, lock):
                yield file
                return


def _file(lock: Path, folder: Path) -> IO[str]:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return open(lock, "a+", encoding="utf-8")
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be created or written to ({error.strerror}); choose another --out"
        ) from error


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether a file that was opened is the one at a path, and not one that was removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _owner(file: IO[str]) -> Process | None:
    file.seek(0)
    with suppress(ValueError, TypeError):  # it is being written
        return Process(**json.load(file))
    return None


def _wait_for_writers(writers: Path, folder: Path) -> None:
    if not writers.exists():
        return
    begun = time.monotonic()
    with open(writers, "a", encoding="utf-8") as file:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.truncate(0)
                return
            waited = time.monotonic() - begun
            alive = [process for process, _ in _read_writers(writers) if not process.is_gone]
            if waited > _LEAVING_SECONDS:
                for process in alive:
                    end(process)
            if waited > _LAST_SECONDS:
                names = ", ".join(str(process) for process in alive[:3]) or "processes of another machine"
                raise RunFolderError(
                    f"{folder} is still written to by what an earlier command has started: {names}; end it and repeat "
                    "the command"
                )
            time.sleep(_POLL_SECONDS)


def end(process: Process) -> None:
    """Kill a process of this machine that has not ended, stopped or not.

    Args:
        process: Which.
    """
    if process.is_here and not process.is_gone:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _birth(pid: int) -> float | None:
    """When a process was started, by a clock that nobody sets; None if it has ended, waited for or not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except ProcessLookupError:
        return None
    else:
        state, *others = stat[stat.rindex(")") + 1 :].split()  # a name may hold anything
        return None if state in ("Z", "X") else float(others[18])
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def _read_writers(path: Path) -> list[tuple[Process, str]]:
    found: list[tuple[Process, str]] = []
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError, KeyError):  # half a line, of a process that was killed
                values: dict[str, Any] = json.loads(line)
                found.append((Process(**values["process"]), values["task"]))
    return found
