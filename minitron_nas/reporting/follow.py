"""`follow`: the report of runs while they go on, as a page of this machine that only reads their folders."""

import functools
import json
import sys
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from minitron_nas.errors import MinitronNasError, RunFolderError
from minitron_nas.execution.preemption import going_on
from minitron_nas.reporting.html import render_report
from minitron_nas.reporting.now import read_now
from minitron_nas.reporting.run_record import read_runs
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.storage.lineage import LINEAGE
from minitron_nas.storage.remote import as_uri
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.storage.schemas import RUN_TABLES

_ATTEMPTS = 5
"""At reading runs while nothing is written to them."""

_LOOPBACK = "127.0.0.1"


def follow(run_folders: Sequence[Path], on_address: Callable[[str], None]) -> None:
    """Show the report of runs, which follows what is written to their folders, until a signal ends the process.

    Nothing is written there, and no lock taken: the folders may be those of another machine, and read-only.

    Args:
        run_folders: At least one.
        on_address: Told where the page is.

    Raises:
        RunFolderError: If a folder or its `plan.yaml` is missing, or one is a URI.
    """
    if uris := [uri for folder in run_folders if (uri := as_uri(folder)) is not None]:
        raise RunFolderError(f"--follow looks at folders every second, which {uris[0]} is none of; leave --follow out")
    page = LivePage(run_folders)
    page.current()
    with _Server((_LOOPBACK, 0), functools.partial(_Handler, page)) as server:
        on_address(f"http://{_LOOPBACK}:{server.server_port}/")
        with going_on("the page is gone, and the run is not touched"):
            server.serve_forever()


class LivePage:
    """The report as of the last time that something was written to its runs."""

    def __init__(self, run_folders: Sequence[Path]) -> None:
        """Show these runs.

        Args:
            run_folders: At least one.
        """
        self._folders = list(run_folders)
        self._lock = threading.Lock()
        self._state, self._text = "", ""

    def current(self) -> tuple[str, str]:
        """Return the page, and a hash of the files that it was made of; of runs that cannot be read now, as it was.

        All that it tells is of one moment: what was read while anything changed is read again.

        Raises:
            MinitronNasError: If they could not be read yet; says why.
        """
        with self._lock:
            for _ in range(_ATTEMPTS):
                before = self._written()
                if before == self._state:
                    break
                try:
                    text = render_report(*read_runs(self._folders), live=before)
                except (MinitronNasError, OSError, ValueError, LookupError):
                    if self._written() != before:
                        continue
                    if not self._text:
                        raise
                    break
                if self._written() == before:
                    self._state, self._text = before, text
            if not self._text:
                raise RunFolderError(f"{self._folders[0]} changes too fast to be read; repeat the command")
            return self._state, self._text

    def now(self) -> list[dict[str, Any]]:
        """Return what each run does now, of those that a process works on."""
        found = [(folder.resolve().name, read_now(folder)) for folder in self._folders]
        several = len(found) > 1
        return [{"run": name if several else "", **now.to_dict()} for name, now in found if now is not None]

    def _written(self) -> str:
        """Return a hash of the files that a report is made of, by size and time of change."""
        return fingerprint([_stamp(path) for folder in self._folders for path in _sources(RunFolder(folder))])


class _Server(ThreadingHTTPServer):
    """Says nothing of a browser that went away while it was answered."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong in an answer, as far as it is ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers the page and what it asks."""

    def __init__(self, page: LivePage, *arguments: object) -> None:
        self._page = page
        super().__init__(*arguments)  # type: ignore[arg-type]  # as socketserver calls it

    def do_GET(self) -> None:  # the name that http.server calls
        """Answer the page itself, or the state that a page asks after."""
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in (_LOOPBACK, "localhost"):  # another site's name may lead here
            self.send_error(403)
        elif self.path == "/":
            self._answer(self._page.current()[1], "text/html; charset=utf-8")
        elif self.path == "/state":
            self._answer(self._page.current()[0], "text/plain; charset=utf-8")
        elif self.path == "/now":
            self._answer(json.dumps(self._page.now()), "application/json")
        else:
            self.send_error(404)

    def _answer(self, text: str, kind: str) -> None:
        content = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # its name there
        """Say nothing of requests."""


def _sources(folder: RunFolder) -> list[Path]:
    """Return the files that a report is made of."""
    tables = [folder.path / table.file_name for table in RUN_TABLES]
    students = sorted((folder.path / "students").glob(f"*/{LINEAGE}"))
    return [folder.plan, folder.ledger, folder.latency, *tables, *students]


def _stamp(path: Path) -> tuple[str, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path), found.st_size, found.st_mtime_ns
