"""Plans that a started head of a Ray cluster builds, with token authentication: followed, left, found, stopped."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml

from minitron_nas.pipeline.family import Family
from minitron_nas.storage.schemas import EVALUATIONS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("opencensus") is None, reason="the head's dashboard needs pip install '.[jobs]'"),
]

_PATIENCE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Head:
    """A started head and how it is spoken to."""

    address: str
    environment: dict[str, str]

    def command(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        """Start `minitron-nas submit`."""
        return subprocess.Popen(
            [sys.executable, "-m", "minitron_nas", "submit", "--address", self.address, *arguments],
            env=self.environment | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **changes: str) -> tuple[int, str, str]:
        """Run it to its end: exit code, standard output and error."""
        with self.command(*arguments, **changes) as process:
            out, err = process.communicate(timeout=_PATIENCE_SECONDS)
        return process.returncode, out, err


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, s3: Any) -> Iterator[Head]:
    port, dashboard = free_port(), free_port()
    environment = (
        os.environ
        | s3.environment
        | {
            "MINITRON_NAS_SCRATCH": str(tmp_path_factory.mktemp("scratch")),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": "/tmp",  # sockets have short paths
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
    )
    start = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={port}", "--num-cpus=1", "--num-gpus=0",
        "--include-dashboard=true", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}",
        "--disable-usage-stats", "--block",
    ]  # fmt: skip
    log = (tmp_path_factory.mktemp("head") / "log").open("w")
    process = subprocess.Popen(start, env=environment, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, Path(log.name).read_text()
        assert time.monotonic() < deadline
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", dashboard)) == 0:
                break
        time.sleep(0.5)
    yield Head(f"http://127.0.0.1:{dashboard}", environment)
    family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.kill()  # a head that is asked to end waits half a minute for its jobs
    process.wait(30)
    for pid in family:
        if psutil.pid_exists(pid):
            psutil.Process(pid).kill()
    log.close()


@pytest.fixture
def plan(trained_teacher: Path, text_file: Path, tiny_settings: dict[str, Any], tmp_path: Path) -> Path:
    settings = {name: value for name, value in tiny_settings.items() if name != "runner"}
    content = {
        "teacher": str(trained_teacher),
        "sizes": ["90k"],
        "data": str(text_file),
        **settings,
    }
    content["baselines"] = False
    content["distillation"] = {**settings.get("distillation", {}), "tokens": "6k", "checkpoint_minutes": 0}
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def job_in(told: str) -> str:
    found = re.search(r"raysubmit_\w+", told)
    assert found is not None, told
    return found.group()


def test_a_job_that_is_left_goes_on_and_is_found_again(
    head: Head, plan: Path, tmp_path: Path, uninterrupted: Any, finished: Callable[[Path], Any]
) -> None:
    out = tmp_path / "run"
    with head.command(str(plan), "--out", str(out)) as client:
        assert client.stdout is not None
        job = job_in(client.stdout.readline())
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not (out / "ledger.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        client.send_signal(signal.SIGINT)
        _, err = client.communicate(timeout=60)
    assert client.returncode == 130
    assert f"the job goes on; follow it with minitron-nas submit --address {head.address} --attach {job}" in err
    code, _, told = head.run("--attach", job)
    assert code == 0, told
    assert "teacher signal" in told
    finished(out).assert_equals(uninterrupted)


def test_a_job_that_is_stopped_leaves_no_process_and_the_same_plan_goes_on(
    head: Head, plan: Path, tmp_path: Path, uninterrupted: Any, finished: Callable[[Path], Any]
) -> None:
    out = tmp_path / "run"
    code, told, _ = head.run(str(plan), "--out", str(out), "--detach")
    assert code == 0
    job = job_in(told)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not list(out.glob("signals/*/*/about.json")) and not list(out.glob("signals/*/about.json")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert head.run("--stop", job)[:2] == (0, f"{job} was stopped\n")
    time.sleep(5)
    left = [
        process for process in psutil.process_iter(["cmdline"]) if str(out) in " ".join(process.info["cmdline"] or ())
    ]
    assert not left
    assert head.run("--stop", job)[1] == f"{job} was not running any more\n"
    code, _, told = head.run(str(plan), "--out", str(out))
    assert code == 0, told
    finished(out).assert_equals(uninterrupted)


def test_a_plan_that_the_cluster_cannot_use_ends_with_the_builds_own_words_and_code(
    head: Head, plan: Path, tmp_path: Path
) -> None:
    code, _, err = head.run(str(plan), "--out", str(tmp_path / "run"), "--set", "teacher=/nowhere/model")
    assert code == 2
    assert "minitron-nas: " in err
    assert "/nowhere/model" in err


@pytest.mark.parametrize("token", ["", secrets.token_hex(32)], ids=["missing", "wrong"])
def test_a_missing_or_wrong_token_is_told_in_our_words(head: Head, plan: Path, tmp_path: Path, token: str) -> None:
    changes = {"RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}
    code, _, err = head.run(str(plan), "--out", str(tmp_path / "run"), **changes)
    assert code == 2
    assert "wants another token; set RAY_AUTH_MODE=token" in err


def test_a_job_that_is_not_known_is_told(head: Head) -> None:
    code, _, err = head.run("--attach", "raysubmit_unknown")
    assert code == 2
    assert f"the cluster at {head.address} knows no job raysubmit_unknown" in err


def test_a_python_that_is_not_there_is_told(head: Head, plan: Path, tmp_path: Path) -> None:
    code, _, err = head.run(str(plan), "--out", str(tmp_path / "run"), "--python", "/nowhere/python")
    assert code == 127
    assert "/nowhere/python" in err


def test_a_job_goes_on_with_a_run_in_a_bucket_which_is_read_from_there(
    head: Head, bucket: Any, uninterrupted: Any, finished: Callable[[Path], Any]
) -> None:
    uri = "s3://bucket/run"
    bucket.begin(uninterrupted, "90k evaluate")
    code, _, told = head.run(str(uninterrupted.path / "plan.yaml"), "--out", uri)
    assert code == 0, told
    assert f"{uri} holds the run (" in told
    (scratch,) = Path(head.environment["MINITRON_NAS_SCRATCH"]).glob("*/run")
    assert {*finished(scratch).stages()} == {*uninterrupted.stages()}
    shutil.rmtree(scratch)
    read = Family(uri)
    ours, theirs = (finished(path).rows(EVALUATIONS) for path in (read.path, uninterrupted.path))
    pd.testing.assert_frame_equal(ours, theirs)
    weights = (read.members[0].path / "model.safetensors").read_bytes()
    assert uninterrupted.weights() == {"students/90k/model.safetensors": weights}
