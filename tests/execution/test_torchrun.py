"""Processes on this machine: how many there are, what they are told, and that SIGTERM reaches them."""

import os
import signal

import pytest

from minitron_nas.errors import PreemptedError
from minitron_nas.execution.torchrun import run_processes

_PROCESS = """
import os, signal, sys, time
from pathlib import Path

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
if folder.name == "patient":
    def leave(*_):
        (folder / ("left-" + rank)).touch()
        sys.exit(143)

    signal.signal(signal.SIGTERM, leave)
    (folder / ("begun-" + rank)).touch()
    time.sleep(200)
if folder.name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
(folder / rank).write_text(os.environ["WORLD_SIZE"])
(folder / rank).with_suffix(".patience").write_text(os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
sys.exit(3 if folder.name == "failing" else 0)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "a_process.py").write_text(_PROCESS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def call(name, on_wait=lambda: None):
        folder = tmp_path / name
        folder.mkdir()
        return folder, lambda: run_processes("a_process", str(folder), 2, on_wait)

    return call


def test_each_process_runs_the_module_with_the_argument_and_knows_the_others(run):
    waits = []
    folder, start = run("ordinary", lambda: waits.append(1))
    assert start() == 0
    found = {file.name: file.read_text() for file in folder.iterdir()}
    assert found == {"0": "2", "1": "2", "0.patience": "3600", "1.patience": "3600"}
    assert waits


def test_a_process_that_fails_fails_the_run(run):
    _, start = run("failing")
    assert start() != 0


def test_a_process_that_was_killed_is_told_in_one_line_and_none_that_has_said_why(run, capfd):
    _, start = run("killed")
    assert start() != 0
    said = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("W", "E"))]
    assert [line.replace("process 1", "process 0") for line in said] == ["training process 0 ended with -9"]


def test_sigterm_while_processes_are_started_stops_them_too(run):
    told = []

    def stop_at_once():
        if not told:
            told.append(os.kill(os.getpid(), signal.SIGTERM))

    _, start = run("patient", stop_at_once)
    with pytest.raises(PreemptedError, match="stopped by SIGTERM"):
        start()


def test_sigterm_goes_on_to_the_processes_and_is_told(run):
    def stop_once_all_have_begun():
        if len(list(folder.glob("begun-*"))) == 2 and not list(folder.glob("left-*")):
            os.kill(os.getpid(), signal.SIGTERM)

    folder, start = run("patient", stop_once_all_have_begun)
    with pytest.raises(PreemptedError, match="stopped by SIGTERM; the same command goes on"):
        start()
    assert sorted(file.name for file in folder.glob("left-*")) == ["left-0", "left-1"]
