"""A page that follows runs while they go on: it reads only whole tables of one moment, and ends in one line."""

import http.client
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minitron_nas.errors import RunFolderError
from minitron_nas.reporting import follow as module
from minitron_nas.reporting import html
from minitron_nas.reporting.follow import LivePage
from minitron_nas.storage.atomic import write_json
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.storage.schemas import EVALUATIONS, TRIALS
from minitron_nas.storage.tables import read_rows, write_rows


@pytest.fixture(autouse=True)
def _without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html.figures, "plotly_script", str)


@pytest.fixture
def folder(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "run")


def test_a_page_is_made_anew_only_when_something_was_written(folder: Path) -> None:
    page = LivePage([folder])
    state, text = page.current()
    assert page.current() == (state, text)
    (folder / TRIALS.file_name).unlink()
    assert page.current()[0] != state
    assert "no trials: no candidate was trained yet" in page.current()[1]


def test_what_was_read_while_a_table_changed_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, calls = module.read_runs, []

    def interrupted(folders: list[Path]) -> object:
        runs = read(folders)
        if not calls:
            rows = read_rows(folder, EVALUATIONS)
            write_rows(folder, EVALUATIONS, [{**row, "perplexity": 77.77} for row in rows])
        calls.append(folders)
        return runs

    monkeypatch.setattr(module, "read_runs", interrupted)
    assert "77.77" in LivePage([folder]).current()[1]
    assert len(calls) == 2


def test_a_table_that_cannot_be_read_leaves_the_page_as_it_was(folder: Path) -> None:
    page = LivePage([folder])
    before = page.current()
    whole = (folder / TRIALS.file_name).read_bytes()
    (folder / TRIALS.file_name).write_bytes(whole[:100])
    assert page.current() == before
    with pytest.raises(RunFolderError, match=r"trials\.parquet cannot be read as a table"):
        LivePage([folder]).current()


def test_nothing_is_written_to_a_folder_that_is_followed(folder: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    LivePage([folder]).current()
    folder.chmod(stat.S_IRWXU)
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_what_each_run_does_now_is_read_without_making_the_page_anew(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    page = LivePage([folder, other])
    state = page.current()[0]
    assert page.now() == []
    now = {"stage": "94M distil", "title": "of a shape", "fraction": None, "standing": "", "seconds_left": None}
    write_json(RunFolder(other).now, now | {"began": time.time(), "at": time.time()})
    said = {"stage": "94M distil: of a shape, for 0 s", "fraction": None, "standing": "", "left": ""}
    assert page.now() == [{"run": "other", **said}]
    assert LivePage([other]).now() == [{"run": "", **said}]
    assert page.current()[0] == state


def test_a_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"holds no plan\.yaml"):
        LivePage([tmp_path]).current()


@pytest.fixture
def command(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command that follows a run, and the port of its page."""
    arguments = [sys.executable, "-m", "minitron_nas", "report", str(folder), "--follow"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a test run ignores, its children do too
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, before)
        timer = threading.Timer(120, process.kill)
        timer.start()
        assert process.stdout is not None
        address = process.stdout.readline()
        match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", address)
        assert match, address
        yield process, int(match[1])
        process.kill()
        timer.cancel()


def get(port: int, path: str, host: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


@pytest.mark.slow
def test_the_command_shows_the_page_on_loopback_and_ends_with_ctrl_c_in_one_line(
    command: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = command
    status, text = get(port, "/")
    assert (status, "connect-src 'self'" in text) == (200, True)
    state = get(port, "/state")[1]
    assert f'const state = "{state}"' in text
    assert get(port, "/now") == (200, "[]")
    assert get(port, "/plan.yaml")[0] == 404
    assert get(port, "/", "evil.example:80")[0] == 403
    with socket.create_connection(("127.0.0.1", port)) as gone:  # a browser that goes away while it is answered
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    assert get(port, "/state")[1] == state
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (
        130,
        "minitron-nas: stopped by SIGINT; the page is gone, and the run is not touched\n",
    )
