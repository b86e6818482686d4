"""Errors of the machine: a disk that is full, read-only, failing or gone, whichever library says so."""

import errno
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from minitron_nas.errors import MachineError, MinitronNasError
from minitron_nas.settings import about_bytes

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_DISK = _NO_ROOM | {
    errno.EFBIG, errno.EROFS, errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN,
    errno.EHOSTDOWN,
}  # fmt: skip
_FILES = {
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EMFILE, errno.ENFILE, errno.EMLINK, errno.ENOLCK,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
"""What no model causes either, but what a library may have met and got over: it counts only if nothing followed it."""

_NO_ROOM_WORDS = (
    *(os.strerror(code).lower() for code in sorted(_NO_ROOM)),
    "disk is full",  # SQLite and Ray
    "file write failed", "unexpected pos",  # torch, which does not pass on why
    " requested and ",  # numpy: so many items requested and fewer written
)  # fmt: skip
_WORDS = (*_NO_ROOM_WORDS, *(os.strerror(code).lower() for code in sorted(_DISK - _NO_ROOM)), "disk i/o error")
"""How libraries that raise errors of their own say it."""

_LONGEST = 300


def machine_error(error: BaseException, path: Path | None = None) -> MachineError | None:
    """Return an error in words that a user can act on if the machine is at fault, and not what it computed.

    Args:
        error: Whatever was raised; what it was raised from counts too.
        path: What was being written.
    """
    if isinstance(error, MachineError):
        return error
    faults = sorted((link for link in _chain(error) if _is_of_a_disk(link)), key=_is_vague)
    fault = faults[0] if faults else None
    if isinstance(fault, MachineError):
        return fault
    if fault is None:
        if not (isinstance(error, OSError) and error.errno in _FILES) or isinstance(error, MinitronNasError):
            return None
        fault = error
    return _named(fault, path)


def refusal(error: Exception) -> str | None:
    """Return one line for an error that leaves the command, if the machine or the system caused it.

    Args:
        error: Whatever was raised.
    """
    fault = machine_error(error)
    if fault is None and not isinstance(error, OSError):
        return None
    return " ".join(str(fault or _named(error, None)).split())


def says_machine_fault(text: str) -> bool:
    """Whether words of an error say that the machine is at fault.

    Args:
        text: The error's words, or a traceback.
    """
    return any(words in text.lower() for words in _WORDS)


def quoted_fault(text: str) -> str | None:
    """Return the first line of an error's words that says that the machine is at fault; None where none does.

    Args:
        text: The error's words, or a traceback.
    """
    return next((line.strip() for line in text.splitlines() if says_machine_fault(line)), None)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a path that could not be written because of its disk.

    Args:
        path: What the block writes.

    Raises:
        MachineError: In place of what was raised, whoever raised it.
    """
    try:
        yield
    except Exception as error:
        fault = machine_error(error, path)
        if fault is None or fault is error:
            raise
        raise fault from error


def require_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be made, before work is done for it; it need not be there yet.

    Args:
        folder: Where files will be written.

    Raises:
        MachineError: Says why.
    """
    place = existing_parent(folder)
    try:
        with TemporaryFile(dir=place) as file:
            file.write(bytes(mmap.PAGESIZE))  # a full disk may still hold an empty file
    except OSError as error:
        raise _named(OSError(error.errno, error.strerror), folder) from None  # which names a file that never was


def existing_parent(path: Path) -> Path:
    """Return a path, or the nearest folder above it that is there."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def expanded(path: str | Path) -> Path:
    """Return a path with a home folder in place of its ~, or as it is where there is no such user.

    Args:
        path: As it was given.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def landing(path: Path) -> Path:
    """Return where what is written to a path comes to lie: what a link stands for, there or not, or the path itself.

    Args:
        path: Any path.
    """
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that a folder lies on, or will lie on.

    Args:
        folder: It need not exist yet.
    """
    return shutil.disk_usage(existing_parent(folder)).free


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then what it was raised from or while handling."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _is_of_a_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK
    return isinstance(error, MachineError) or says_machine_fault(str(error))


def _is_vague(error: BaseException) -> bool:
    return not (isinstance(error, MachineError) or (isinstance(error, OSError) and error.errno is not None))


def _named(error: BaseException, path: Path | None) -> MachineError:
    code, reason, place = None, " ".join(str(error).split())[:_LONGEST], path
    if isinstance(error, OSError):
        code, reason = error.errno, error.strerror or reason
        written = error.filename2 or error.filename  # a copy names what it reads first
        place = Path(os.fsdecode(written)) if isinstance(written, str | bytes) else path
    no_room = code in _NO_ROOM or (code is None and any(words in reason.lower() for words in _NO_ROOM_WORDS))
    advice = "free some space" if no_room else "mend that"
    if code == errno.EFBIG:
        advice = "raise the limit on the size of files (see `ulimit -f`) or take another disk"
    where = f"{place}: " if place is not None else ""
    told = MachineError(f"{where}{reason}{_room(place) if no_room else ''}; {advice} and repeat the command")
    told.errno = code
    return told


def _room(place: Path | None) -> str:
    """Say how much room there is, in bytes and files: either may be used up, and a quota may say less than the disk."""
    if place is None:
        return ""
    try:
        disk, files = shutil.disk_usage(existing_parent(place)), os.statvfs(existing_parent(place))
    except OSError:
        return ""
    used_up = ", and no more files" if files.f_files and not files.f_favail else ""
    return f" ({about_bytes(disk.free)} of {about_bytes(disk.total)} free there{used_up})"
