"""Folders at URIs, such as `s3://bucket/run`, by fsspec: objects are written and read whole, faults told in a line."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_nas.errors import MachineError, MinitronNasError, PlanError
from minitron_nas.storage.atomic import whole_file
from minitron_nas.storage.foreign import plain_name
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.storage.machine import expanded

_URI = re.compile(r"(?P<protocol>[a-z][a-z0-9+-]+):/+(?P<rest>.+)")
_PATHS = ("file", "local")
_NEVER = (*_PATHS, "http", "https")
_LIKE_A_URI = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]+):(?P<rest>.*)")
_OF_FSSPEC = ("s3fs", "gcsfs")
"""Drivers of which each version goes with the same version of fsspec."""

_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
"""Faults of this machine's disk while it reads or writes for a transfer."""

_LONGEST = 200


def as_uri(place: object) -> str | None:
    """Return a place as a URI, None where it is a path or something else; `file://` is a path.

    Args:
        place: As it was given; a `Path` has lost one of the slashes of the URI that it was made of.
    """
    found = _URI.fullmatch(str(place)) if isinstance(place, str | Path) else None
    return None if found is None or found["protocol"] in _NEVER else f"{found['protocol']}://{found['rest'].strip('/')}"


def as_path(place: str | Path) -> Path:
    """Return a place that is no URI as a path, without `file://` and with a home folder in place of its ~.

    Args:
        place: As it was given.

    Raises:
        PlanError: If it was meant as a URI: of a protocol that is read only, misspelt, or with nothing behind it.
    """
    found = _URI.fullmatch(str(place))
    if found is not None and found["protocol"] in _PATHS:
        return Path(f"/{found['rest'].removeprefix('localhost/')}")
    if _is_misspelt(str(place)):
        raise PlanError(
            f"{place} is no URI that can be written to; give such as s3://bucket/run, a path, or ./{place} for a "
            "folder of that name"
        )
    return expanded(place)


def _is_misspelt(place: str) -> bool:
    """Whether a place that is no URI begins like one."""
    found = _LIKE_A_URI.fullmatch(place)
    if found is None:
        return False
    from fsspec.registry import known_implementations  # deferred: most runs need none

    return found["rest"].startswith("/") or found["protocol"].lower() in known_implementations


@dataclass(frozen=True, slots=True)
class Object:
    """A file at a URI.

    Attributes:
        num_bytes: Its size.
        version: Another whenever it was written again.
    """

    num_bytes: int
    version: str


class Store:
    """The objects of a folder at a URI, by their names in it.

    An object that is written is there as a whole, or as it was before. What the driver does about a connection that
    fails, it has done before an error is raised here.
    """

    def __init__(self, uri: str) -> None:
        """Find the driver of a URI; nothing is asked of the network yet.

        Raises:
            PlanError: If there is none, or it is not installed.
        """
        import fsspec  # deferred: most runs need none
        from fsspec.registry import known_implementations

        self.uri = uri
        protocol = uri.partition(":")[0]
        try:
            self._files, self._root = fsspec.core.url_to_fs(uri)
        except ImportError:
            package = known_implementations[protocol]["class"].partition(".")[0]
            version = f"=={fsspec.__version__}" if package in _OF_FSSPEC else ""
            raise PlanError(f"{uri} needs a driver that is not installed; pip install '{package}{version}'") from None
        except ValueError as error:
            raise PlanError(f"{uri} has no driver ({error}); give a folder, or such as s3://bucket/run") from None

    def objects(self, under: str = "") -> dict[str, Object]:
        """Return all objects by name, in order, but for those whose names lead out of a folder.

        Args:
            under: Only those in this folder.
        """
        with self._told("listed", under):
            self._files.invalidate_cache()
            found: dict[str, dict[str, Any]] = self._files.find(self._path(under), detail=True)
        named = {path[len(self._root) :].lstrip("/"): about for path, about in sorted(found.items())}
        return {
            name: Object(about["size"], fingerprint(about))
            for name, about in named.items()
            if plain_name(name) and about["type"] == "file"
        }

    def put(self, file: Path, name: str) -> int:
        """Write a file as an object, and return its bytes.

        Args:
            file: The file.
            name: Of the object.
        """
        with self._told("written", name):
            self._files.put_file(str(file), self._path(name))
        return file.stat().st_size

    def get(self, name: str, file: Path) -> None:
        """Read an object into a file, which is whole or absent.

        Args:
            name: Of the object.
            file: Where it goes.
        """
        with whole_file(file) as partial, self._told("read", name):
            self._files.get_file(self._path(name), str(partial))

    def write(self, name: str, content: bytes) -> None:
        """Write a small object.

        Args:
            name: Of the object.
            content: All of it.
        """
        with self._told("written", name):
            self._files.pipe_file(self._path(name), content)

    def read(self, name: str) -> bytes | None:
        """Return a small object, None if there is none.

        Args:
            name: Of the object.
        """
        with self._told("read", name):
            try:
                content: bytes = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None
        return content

    def remove(self, name: str) -> None:
        """Remove an object, if it is there.

        Args:
            name: Of the object.
        """
        with self._told("removed", name), suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else str(self._root)

    @contextmanager
    def _told(self, done: str, name: str) -> Iterator[None]:
        """Say in one line what could not be done; drivers raise errors of many libraries."""
        try:
            yield
        except MinitronNasError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _LOCAL:
                raise
            place = f"{self.uri}/{name}" if name else self.uri
            reason = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
            raise MachineError(
                f"{place} cannot be {done} ({reason}); see that bucket, credentials and connection are right and "
                "repeat the command"
            ) from error
