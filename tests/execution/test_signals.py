"""The command and its signals: one line and 128 + the signal, at the first in order and at the second at once."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = """
import signal, sys, time
from pathlib import Path
from minitron_nas.execution import preemption
from minitron_nas.errors import PreemptedError

begun, kind = Path(sys.argv[1]), sys.argv[2]
if kind != "nohup":  # a test run in the background ignores signals, and its children with it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
preemption.answer_signals()
try:
    with preemption.going_on("the same command goes on in runs/one"):
        try:
            if "ray" in kind:
                from minitron_nas.execution import ray_session
                if kind == "starting ray":
                    begun.touch()
                with ray_session.connected(None, begun.with_name("state")):
                    if kind == "ending ray":
                        from ray._private import worker
                        node, end = worker._global_node, worker._global_node.kill_all_processes
                        node.kill_all_processes = lambda **how: (begun.touch(), time.sleep(1), end(**how))
            asked = []
            if kind == "training":
                with preemption.on_stop(asked.append):
                    begun.touch()
                    while not asked:
                        time.sleep(0.01)
                    raise preemption.stopped(asked[0], "the same command goes on from checkpoint-3")
            begun.touch()
            time.sleep(600)
        finally:
            if kind == "slow":
                Path(f"{begun}-leaving").touch()
                time.sleep(600)
            Path(f"{begun}-left").touch()
except PreemptedError as stop:
    preemption.leave(stop)
"""


class Command:
    def __init__(self, folder: Path, kind: str, *before: str) -> None:
        self.begun = folder / "begun"
        command = [*before, sys.executable, "-c", COMMAND, str(self.begun), kind]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.wait_for("begun")

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 60
        while not self.begun.with_name(name).exists():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def told(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.mark.parametrize(
    ("signum", "kind", "code", "goes_on"),
    [
        (signal.SIGINT, "waiting", 130, "in runs/one"),
        (signal.SIGTERM, "waiting", 143, "in runs/one"),
        (signal.SIGHUP, "waiting", 129, "in runs/one"),
        (signal.SIGINT, "training", 130, "from checkpoint-3"),
        (signal.SIGHUP, "training", 129, "from checkpoint-3"),
    ],
)
def test_a_signal_ends_the_command_in_order(
    tmp_path: Path, signum: signal.Signals, kind: str, code: int, goes_on: str
) -> None:
    command = Command(tmp_path, kind)
    command.process.send_signal(signum)
    assert command.told() == (code, f"minitron-nas: stopped by {signum.name}; the same command goes on {goes_on}\n")
    assert (tmp_path / "begun-left").exists()


@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals, code: int) -> None:
    command = Command(tmp_path, "slow")
    command.process.send_signal(signal.SIGINT)
    command.wait_for("begun-leaving")
    time.sleep(0.3)
    command.process.send_signal(second)
    assert command.told() == (code, f"minitron-nas: stopped by {second.name}; the same command goes on in runs/one\n")


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("kind", ["starting ray", "ending ray", "after ray"])
def test_a_signal_ends_a_command_in_order_that_starts_ray_or_ends_it_or_has_ended_it(
    tmp_path: Path, kind: str, signum: signal.Signals, code: int
) -> None:
    command = Command(tmp_path, kind)
    time.sleep(1 if kind == "starting ray" else 0)
    command.process.send_signal(signum)
    assert command.told() == (code, f"minitron-nas: stopped by {signum.name}; the same command goes on in runs/one\n")
    assert (tmp_path / "begun-left").exists()


def test_a_command_that_is_to_outlive_its_terminal_does(tmp_path: Path) -> None:
    command = Command(tmp_path, "nohup", "nohup")
    command.process.send_signal(signal.SIGHUP)
    command.process.send_signal(signal.SIGTERM)
    code, err = command.told()
    assert code == 143
    assert err.endswith("minitron-nas: stopped by SIGTERM; the same command goes on in runs/one\n")
