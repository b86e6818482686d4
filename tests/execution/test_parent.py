"""Processes that have lost their command: they end, and nobody writes beside them until they have."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from minitron_nas.errors import RunFolderError
from minitron_nas.storage import locks
from minitron_nas.storage.locks import Process, held, release, writing

WORKER = """
import sys, time
from pathlib import Path
from minitron_nas.execution.parent import working_for_parent

with working_for_parent():
    while True:
        Path(sys.argv[1]).write_text(str(time.time()))
        time.sleep(0.02)
"""

AGENT = """
import subprocess, sys, time
from pathlib import Path

worker = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]])
Path(sys.argv[1]).with_name("pid").write_text(str(worker.pid))
worker.wait()
"""

COMMAND = """
import os, subprocess, sys, time
from pathlib import Path
from minitron_nas.execution.parent import told_in_environment
from minitron_nas.storage.locks import held

folder = Path(sys.argv[1])
with held(folder / ".lock", folder):
    agent = subprocess.Popen(
        [sys.executable, "-c", sys.argv[3], str(folder / "written"), sys.argv[2]],
        env={**os.environ, **told_in_environment()},
        start_new_session=True,
    )
    (folder / "agent").write_text(str(agent.pid))
    time.sleep(600)
"""


def wait_until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Commanded:
    """A command, what stands between, as torchrun does, and a worker that writes without end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.command = subprocess.Popen([sys.executable, "-c", COMMAND, str(folder), WORKER, AGENT])
        wait_until((folder / "written").exists)
        self.agent, self.worker = (psutil.Process(int((folder / name).read_text())) for name in ("agent", "pid"))

    @property
    def ends(self) -> bool:
        """Whether the worker ends within seconds."""
        gone, _ = psutil.wait_procs([self.worker], timeout=20)
        return bool(gone)

    def clean(self) -> None:
        for process in (self.command, self.agent, self.worker):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.command.wait()


@pytest.fixture
def commanded(tmp_path: Path) -> Iterator[Commanded]:
    made = Commanded(tmp_path)
    yield made
    made.clean()


def test_a_worker_ends_within_seconds_of_its_command_and_the_next_waits_for_it(commanded: Commanded) -> None:
    lock, in_use = commanded.folder / ".lock", rf"is in use by process {commanded.command.pid} \(-c\) on "
    with pytest.raises(RunFolderError, match=in_use), held(lock, commanded.folder):
        pass
    commanded.command.kill()
    commanded.command.wait()
    with held(commanded.folder / ".lock", commanded.folder):
        assert not commanded.worker.is_running() or commanded.worker.status() == psutil.STATUS_ZOMBIE
        written = (commanded.folder / "written").read_text()
        time.sleep(0.2)
        assert (commanded.folder / "written").read_text() == written


def test_a_worker_ends_with_what_stands_between_it_and_its_command(commanded: Commanded) -> None:
    commanded.agent.kill()
    assert commanded.ends


def test_a_worker_that_cannot_end_is_ended_by_the_next_command(
    commanded: Commanded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_LEAVING_SECONDS", 0.3)
    commanded.worker.send_signal(signal.SIGSTOP)
    commanded.command.kill()
    commanded.command.wait()
    with held(commanded.folder / ".lock", commanded.folder):
        assert commanded.ends


def test_what_nobody_can_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_LEAVING_SECONDS", 0.1)
    monkeypatch.setattr(locks, "_LAST_SECONDS", 0.3)
    lock = tmp_path / ".lock"
    with held(lock, tmp_path):
        starter = locks.Starter.current()
    elsewhere = Process(7, 1.0, "another-machine", "minitron-nas build")
    monkeypatch.setattr(Process, "current", lambda: elsewhere)
    with starter.joined("90k"):
        named = r"still written to .*: process 7 \(minitron-nas build\) on another-m"
        with pytest.raises(RunFolderError, match=named), held(lock, tmp_path):
            pass
        release(lock)  # what is shared stays
        assert (tmp_path / ".lock.writers").exists()
    monkeypatch.undo()
    with held(lock, tmp_path):
        release(lock)
    assert list(tmp_path.iterdir()) == []


def test_who_works_at_a_task_is_known_to_who_holds_the_folder(tmp_path: Path) -> None:
    assert writing("90k") == []
    with held(tmp_path / ".lock", tmp_path):
        assert writing("90k") == []
        with locks.Starter.current().joined("90k"):
            assert [process.pid for process in writing("90k")] == [os.getpid()]
            assert writing("60k") == []


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({}, False),
        ({"started": 1.0}, True),
        ({"pid": 2**22 + 1}, True),
        ({"machine": "other", "pid": 2**22 + 1}, False),
    ],
)
def test_a_process_is_gone_when_its_number_is_free_or_anothers(changes: dict[str, object], gone: bool) -> None:
    values = {name: getattr(Process.current(), name) for name in ("pid", "started", "machine", "command")}
    assert Process(**(values | changes)).is_gone is gone


def test_a_process_that_nobody_has_waited_for_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.of(child.pid)
    assert process is not None
    assert not process.is_gone
    child.kill()
    wait_until(lambda: process.is_gone)
    child.communicate()
