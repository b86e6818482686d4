"""Who works at a URI: one command at a time, as far as a store without locks can tell.

Each command leaves an object of its own, then looks for those of others. So of two that begin at once at least one
sees the other, on every store that lists what was written. A command says again and again that it is at work; one that
has been silent for long is taken for dead, and its object removed. It may only have slept: before every stage that is
recorded a command looks whether its object is still there. What it uploads between that look and the end of the
recording, nothing can hold up.
"""

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from minitron_nas.errors import MinitronNasError, RunFolderError
from minitron_nas.storage.locks import Process
from minitron_nas.storage.remote import Store

OWNERS = ".owners/"

_BEAT_SECONDS = 20.0
_SILENT_SECONDS = 90.0
_POLL_SECONDS = 5.0


class Claim:
    """The right of this command to write at a URI."""

    def __init__(self, store: Store) -> None:
        """Begin without it.

        Args:
            store: What is at the URI.
        """
        self._store, self._name = store, f"{OWNERS}{secrets.token_hex(8)}.json"
        self._num_beats = 0

    def require(self) -> None:
        """Refuse to go on where another command has taken this one for dead.

        Raises:
            RunFolderError: If it has.
        """
        if self._store.read(self._name) is None:
            raise RunFolderError(
                f"{self._store.uri} was taken over by another command while this one was silent; wait for that one"
            )

    @contextmanager
    def held(self, note: Callable[[str], object]) -> Iterator[None]:
        """Hold it while the block runs.

        Args:
            note: Told what is waited for.

        Raises:
            RunFolderError: If another command works there.
        """
        over = threading.Event()
        self._beat()
        thread = threading.Thread(target=self._keep_on, args=(over,), daemon=True, name="claim")
        thread.start()
        try:
            self._refuse_others(note)
            yield
        finally:
            over.set()
            thread.join()
            with suppress(MinitronNasError):  # it counts as silent soon
                self._store.remove(self._name)

    def _beat(self) -> None:
        content = {"process": asdict(Process.current()), "beat": self._num_beats}
        self._store.write(self._name, json.dumps(content).encode())
        self._num_beats += 1

    def _keep_on(self, over: threading.Event) -> None:
        while not over.wait(_BEAT_SECONDS):
            with suppress(MinitronNasError):  # the next may reach it
                if self._store.read(self._name) is None:
                    return
                self._beat()

    def _refuse_others(self, note: Callable[[str], object]) -> None:
        first = self._others()
        for name, content in first.items():
            owner = _owner(content)
            if owner is not None and owner.is_here and not owner.is_gone:
                raise self._in_use(content)
            if owner is not None and owner.is_gone:
                self._store.remove(name)
        silent = {name: content for name, content in self._others().items() if first.get(name) == content}
        if silent:
            (content, *_) = silent.values()
            note(f"{self._store.uri}: waiting up to {_SILENT_SECONDS:.0f} s for a sign of {_told(content)}")
        end = time.monotonic() + _SILENT_SECONDS
        while others := self._others():
            if spoken := [content for name, content in others.items() if silent.get(name) != content]:
                raise self._in_use(spoken[0])
            if time.monotonic() >= end:
                for name in others:
                    self._store.remove(name)
                return
            time.sleep(_POLL_SECONDS)

    def _others(self) -> dict[str, bytes]:
        names = [name for name in self._store.objects(OWNERS.rstrip("/")) if name != self._name]
        contents = {name: self._store.read(name) for name in names}
        return {name: content for name, content in contents.items() if content is not None}

    def _in_use(self, content: bytes) -> RunFolderError:
        return RunFolderError(f"{self._store.uri} is in use by {_told(content)}; wait for it or choose another --out")


def _owner(content: bytes) -> Process | None:
    with suppress(ValueError, TypeError, KeyError):
        return Process(**json.loads(content)["process"])
    return None


def _told(content: bytes) -> str:
    return str(_owner(content) or "another command")
