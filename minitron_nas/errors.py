"""Every error that minitron_nas raises on purpose.

Each class is a `MinitronNasError` and also the builtin that a caller would expect, so both
`except MinitronNasError` and `except ValueError` work. A message says what was given, what is
required and what to do; the command line prints it as one line and exits with 2. Only
`PreemptedError` is none: it is no fault, and ends the process.
"""

import signal
from collections.abc import Mapping
from unicodedata import category

_NOT_SHOWN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that control, or that mean nothing."""


class MinitronNasError(Exception):
    """Root of all errors that a user can act on."""


class PlanError(MinitronNasError, ValueError):
    """A plan, setting or command-line value that cannot be used."""


class InvalidArchitectureError(MinitronNasError, ValueError):
    """A shape that cannot exist, or that stock transformers refuses to load."""


class UnknownFamilyError(MinitronNasError, ValueError):
    """A model type that no family table describes."""


class CheckpointError(MinitronNasError, ValueError):
    """A checkpoint whose tensors or tokenizer disagree with its family table or config."""


class TeacherNotFoundError(MinitronNasError, FileNotFoundError):
    """A teacher that no source could deliver."""


class SpaceError(MinitronNasError, ValueError):
    """A search space that is malformed or holds no candidate for a requested size."""


class DataError(MinitronNasError, ValueError):
    """Text that is missing, unreadable or too short."""


class ColumnError(DataError):
    """A table without the column that its documents are read from."""


class ScoresError(MinitronNasError, ValueError):
    """Importance scores cannot be used."""


class RunFolderError(MinitronNasError, RuntimeError):
    """An output folder that belongs to another run or is in use."""


class CacheError(MinitronNasError, ValueError):
    """A cache of what a teacher says that is incomplete, damaged, or not the one that is needed."""


class LatencyError(MinitronNasError, ValueError):
    """A latency model that cannot be made here, or was made for something else."""


class MachineError(MinitronNasError, OSError):
    """A disk that is full, read-only, failing or gone, or another fault of the machine; the same command can go on."""


class DiskSpaceError(MachineError):
    """Not enough free disk for what a stage is about to write."""


class TrialError(MinitronNasError, RuntimeError):
    """Trials that failed so often that the search cannot go on."""


class ProofError(MinitronNasError, RuntimeError):
    """A student whose reloaded logits differ from the model it was written from."""


class NonFiniteLossError(MinitronNasError, ArithmeticError):
    """A training loss that became NaN or infinite."""


class TrainingMemoryError(MinitronNasError, MemoryError):
    """A training that does not fit into memory."""


class TrainingProcessError(MinitronNasError, RuntimeError):
    """A training process that ended without a result."""


class WorkerError(MinitronNasError, RuntimeError):
    """Work on another machine that ended without a result."""


class PreemptedError(SystemExit):
    """Work that was asked to stop by a signal; a training has written a checkpoint.

    It ends the process with 128 + the signal, such as 143 for SIGTERM: what a process without a checkpoint to
    write would report too, and what schedulers take for "start me again". Nobody who catches an Exception to go
    on with other work holds it up.
    """

    def __init__(self, goes_on: str, signum: int = signal.SIGTERM) -> None:
        """Keep what to tell; the command line prints it.

        Args:
            goes_on: What the same command does when it is repeated.
            signum: The signal.
        """
        super().__init__(128 + signum)
        self.goes_on, self.signum = goes_on, signum

    def __str__(self) -> str:
        """Say what to tell."""
        return f"stopped by {signal.Signals(self.signum).name}; {self.goes_on}"


def to_plain(error: MinitronNasError | PreemptedError) -> dict[str, str]:
    """Return an error as plain values, for the process that has asked for the work.

    Args:
        error: Of one of the classes above.
    """
    message = error.goes_on if isinstance(error, PreemptedError) else str(error)
    return {"error": type(error).__name__, "message": message}


def from_plain(content: Mapping[str, str]) -> MinitronNasError | PreemptedError:
    """Return the error that `to_plain` was given.

    Args:
        content: What it returned.
    """
    error: MinitronNasError | PreemptedError = globals()[content["error"]](content["message"])
    return error


def printable(text: str) -> str:
    """Return words with everything that a terminal obeys instead of showing written as its escape; line breaks stay.

    Names of files, columns and models come from others, and may hold such characters.
    """
    return "".join(
        one if one == "\n" or category(one) not in _NOT_SHOWN else one.encode("unicode_escape").decode() for one in text
    )
