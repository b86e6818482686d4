"""Builds in processes of their own, and one that nothing interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from minitron_nas.storage.schemas import EVALUATIONS, TRIALS, Table
from minitron_nas.storage.tables import read_frame

MEASURED = (
    "seconds", "began_seconds", "prefill_tokens_per_second", "decode_tokens_per_second", "peak_memory_bytes",
    "prefill_speedup", "decode_speedup", "prefill_spread", "decode_spread",
)  # fmt: skip
"""Columns that two equal runs need not share."""

_PATIENCE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A time of a build: so many seconds after a stage has begun and something in the run matches `sign`."""

    stage: str
    seconds: float
    sign: str = "*"


@dataclass(frozen=True, slots=True)
class Told:
    """What a process told."""

    code: int
    out: str
    err: str

    def finished_before(self) -> list[str]:
        """The stages that the process left as an earlier one had finished them."""
        words = ": finished before"
        return [line.removesuffix(words) for line in self.err.splitlines() if line.endswith(words)]


@dataclass(frozen=True, slots=True)
class Stopped:
    """What a process told that was sent signals, how many others it had started, and which of them outlived it."""

    told: Told
    num_started: int
    outlived: list[str]


def _is_of_ray(process: psutil.Process) -> bool:
    """Whether a process is one of Ray's, of its agents or of what waits for work there."""
    try:
        return process.name().startswith("ray") or any("/ray/" in part for part in process.cmdline())
    except psutil.Error:
        return False


def _is_zombie(process: psutil.Process) -> bool:
    """Whether a process has ended, and nobody has asked how, as init does not in some containers."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@dataclass(frozen=True, slots=True)
class Build:
    """`minitron-nas build` with everything but the run folder decided."""

    arguments: tuple[str, ...]

    def finish(self, out: Path, *more: str) -> Told:
        """Run to the end."""
        with self._started(out, more) as process:
            process.wait(_PATIENCE_SECONDS)
        return self._told(out, process)

    def kill(self, out: Path, moment: Moment, *more: str) -> Told:
        """Run to a moment and kill the process with all that it has started; code 0 means that it was faster."""
        with self._at(out, moment, more) as process:
            pass
        return self._told(out, process)

    def kill_when(self, out: Path, sign: Callable[[], object], *more: str) -> Told:
        """Run until a sign is seen and kill the process with all that it has started."""
        with self._started(out, more) as process:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while process.poll() is None and not sign():
                assert time.monotonic() < deadline, "no sign was seen"
                time.sleep(0.05)
        return self._told(out, process)

    def stop(self, out: Path, moment: Moment, signals: Sequence[signal.Signals], *more: str) -> Stopped:
        """Run to a moment, send signals to the process alone, and tell how it ended and what outlived it."""
        with self._at(out, moment, more) as process:
            started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            for each in signals:
                process.send_signal(each)
                time.sleep(0.5)
            process.wait(_PATIENCE_SECONDS)
            rays = [each for each in started if _is_of_ray(each)]
            _, own = psutil.wait_procs([each for each in started if each not in rays], timeout=20)
            _, others = psutil.wait_procs(rays, timeout=70)  # its agents wait a minute for a head that has ended too
            alive = [left for left in (*own, *others) if not _is_zombie(left)]
            for left in alive:
                left.kill()
        return Stopped(self._told(out, process), len(started), [str(left) for left in alive])

    def survive(self, out: Path, moment: Moment, disturb: Callable[[], object], *more: str) -> Told:
        """Run to a moment, do something to the machine, and run to the end."""
        with self._at(out, moment, more) as process:
            disturb()
            process.wait(_PATIENCE_SECONDS)
        return self._told(out, process)

    def suffer(self, out: Path, moment: Moment, disturb: Callable[[], object], *more: str) -> Told:
        """Run to a moment and do something to the machine again and again, until the process has ended."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        with self._at(out, moment, more) as process:
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(OSError):  # it had less room than it said
                    disturb()
                time.sleep(0.02)
        return self._told(out, process)

    def watch(self, out: Path, *more: str) -> tuple[Told, int]:
        """Run to the end, and tell how much memory the process itself has had at most, in bytes."""
        most = 0
        with self._started(out, more) as process:
            itself, deadline = psutil.Process(process.pid), time.monotonic() + _PATIENCE_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(psutil.NoSuchProcess):
                    most = max(most, itself.memory_info().rss)
                time.sleep(0.1)
        return self._told(out, process), most

    @contextmanager
    def _at(self, out: Path, moment: Moment, more: tuple[str, ...]) -> Iterator[subprocess.Popen[bytes]]:
        """Run to a moment."""
        with self._started(out, more) as process:
            begun = f"{moment.stage}: ".encode()
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while process.poll() is None and not (
                begun in self._file(out, "err").read_bytes() and any(out.glob(moment.sign))
            ):
                assert time.monotonic() < deadline, f"{moment.stage} did not begin"
                time.sleep(0.01)
            end = time.monotonic() + moment.seconds
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.005)
            yield process

    @contextmanager
    def _started(self, out: Path, more: tuple[str, ...]) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "minitron_nas", "build", *self.arguments, "--out", str(out), *more]
        with self._file(out, "out").open("wb") as stdout, self._file(out, "err").open("wb") as stderr:
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True)
            try:
                yield process
            finally:
                _kill_tree(process)

    def _told(self, out: Path, process: subprocess.Popen[bytes]) -> Told:
        texts = (self._file(out, name).read_text(encoding="utf-8") for name in ("out", "err"))
        return Told(process.returncode, *texts)

    @staticmethod
    def _file(out: Path, name: str) -> Path:
        return out.with_name(f"{out.name}.{name}")


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group, and descendants such as Ray's that left it, and wait for them to be gone."""
    if process.poll() is not None:
        return
    descendants = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for descendant in descendants:
        try:
            descendant.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(descendants, timeout=30)


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run folder, as what must be equal wherever and however often it was begun."""

    path: Path

    def rows(self, table: Table) -> pd.DataFrame:
        """A table without what was measured."""
        frame = read_frame(self.path, table)
        return frame.drop(columns=[name for name in MEASURED if name in frame])

    def weights(self) -> dict[str, bytes]:
        """The bytes of every weight file of every student and baseline."""
        members = [*self.path.glob("students/*"), *self.path.glob("baselines/*")]
        files = [file for member in sorted(members) for file in sorted(member.glob("*.safetensors"))]
        return {str(file.relative_to(self.path)): file.read_bytes() for file in files}

    def ledger(self) -> list[dict[str, Any]]:
        """The stages in the order in which they were finished, whether or not all of them were."""
        ledger = self.path / "ledger.jsonl"
        return [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []

    def stages(self) -> list[str]:
        """The names of the finished stages."""
        return [entry["stage"] for entry in self.ledger()]

    def moment(self, stage: str, fraction: float, sign: str = "*") -> Moment:
        """The time at which a fraction of a stage's work was done in this run."""
        (seconds,) = (entry["seconds"] for entry in self.ledger() if entry["stage"] == stage)
        return Moment(stage, fraction * seconds, sign)

    def moment_of_all(self, fraction: float) -> Moment:
        """The time at which a fraction of all work was done in this run."""
        left = fraction * sum(entry["seconds"] for entry in self.ledger())
        for entry in self.ledger():
            if left <= entry["seconds"]:
                return Moment(entry["stage"], left)
            left -= entry["seconds"]
        raise ValueError(f"fraction={fraction} is not in 0..1")

    def copy_before(self, stage: str, to: Path) -> None:
        """Copy the folder as if a stage and all after it were yet to come; nothing, if it is the first."""
        before = self.ledger()[: self.stages().index(stage)]
        if not before:
            return
        for name in ("plan.yaml", *(name for entry in before for name, *_ in (*entry["outputs"], *entry["rows"]))):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.path / name, to / name)
        (to / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in before))

    def assert_equals(self, other: "Finished") -> None:
        """Compare everything that the settings and the seed decide; no stage was made twice."""
        self.assert_same_results(other)
        assert sorted(self.stages()) == sorted(other.stages())

    def assert_same_results(self, other: "Finished") -> None:
        """Compare what came out, whether or not a stage was made twice."""
        for table in (TRIALS, EVALUATIONS):
            pd.testing.assert_frame_equal(self.rows(table), other.rows(table), check_exact=True)
        assert self.weights() == other.weights() != {}
        names = [path.name for path in self.path.rglob("*")]
        assert not [name for name in names if "partial" in name or name.startswith("checkpoint-")]
        assert not (self.path / "work").exists()


@pytest.fixture(scope="session")
def build(trained_teacher: Path, text_file: Path, tiny_settings: dict[str, Any]) -> Build:
    """One size without baselines, in this machine's processes; checkpoints after every step."""
    settings = {name: value for name, value in tiny_settings.items() if name != "runner"}
    sets = [
        f"--set={section}.{key}={json.dumps(value)}"
        for section, values in settings.items()
        if isinstance(values, dict)
        for key, value in values.items()
    ]
    more = ("runner=local", "baselines=false", "distillation.tokens=6k", "distillation.checkpoint_minutes=0")
    sets += [f"--set={override}" for override in more]
    return Build((str(trained_teacher), "--size", "90k", "--data", str(text_file), "--json", *sets))


@pytest.fixture(scope="session")
def finished() -> Callable[[Path], Finished]:
    """Open a run folder that is finished."""
    return Finished


@pytest.fixture(scope="session")
def uninterrupted(made_once: Callable[..., Path], build: Build) -> Finished:
    """A run that nothing interrupted; its standard output and error lie in `told`."""

    def fill(folder: Path) -> None:
        told = build.finish(folder / "run")
        assert told.code == 0, told.err

    return Finished(made_once("uninterrupted", fill) / "run")


@dataclass
class Bucket:
    """A bucket of an S3 server on this machine, which can be told to hold up or refuse what is written."""

    client: Any
    environment: dict[str, str]
    held: str | None = None
    refused: str | None = None
    arrived: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def names(self, run: str) -> dict[str, int]:
        """The objects of a run and their sizes."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{run}/")
        return {o["Key"].removeprefix(f"{run}/"): o["Size"] for page in pages for o in page.get("Contents", ())}

    def read(self, name: str) -> bytes:
        """The content of an object."""
        content: bytes = self.client.get_object(Bucket="bucket", Key=name)["Body"].read()
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write an object."""
        self.client.put_object(Bucket="bucket", Key=name, Body=content)

    def begin(self, run: Finished, before: str) -> list[str]:
        """Write what a run has left before a stage, and return the stages."""
        lines = (run.path / "ledger.jsonl").read_text().splitlines(keepends=True)
        done = run.stages()[: run.stages().index(before)]
        names = [output[0] for entry in run.ledger()[: len(done)] for output in (*entry["outputs"], *entry["rows"])]
        for name in ("plan.yaml", *names):
            if not name.startswith(("tokens/", "signals/", "prepared/")):
                self.write(f"run/{name}", (run.path / name).read_bytes())
        self.write("run/ledger.jsonl", "".join(lines[: len(done)]).encode())
        return done

    def empty(self) -> None:
        """Remove everything, and hold up and refuse nothing."""
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket="bucket"):
            for each in page.get("Contents", ()):
                self.client.delete_object(Bucket="bucket", Key=each["Key"])
        self.held = self.refused = None
        self.arrived, self.released = threading.Event(), threading.Event()


class Gate:
    """Passes requests on to the server, but for those that the bucket holds up or refuses."""

    def __init__(self, server: Callable[..., Iterable[bytes]]) -> None:
        self.server, self.bucket = server, None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        bucket, path = self.bucket, environ["PATH_INFO"]
        if bucket is not None and environ["REQUEST_METHOD"] in ("PUT", "POST"):
            if bucket.held is not None and path.endswith(bucket.held):
                bucket.arrived.set()
                bucket.released.wait(120)
            if bucket.refused is not None and path.endswith(bucket.refused):
                start_response("503 Service Unavailable", [("Content-Length", "0")])
                return [b""]
        return self.server(environ, start_response)


@pytest.fixture(scope="session")
def s3() -> Iterator[Bucket]:
    """A bucket named "bucket" of a server of this session."""
    for name in ("boto3", "moto", "s3fs"):
        pytest.importorskip(name, reason="pip install -e '.[nightly]' brings an S3 server and its client")
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    gate = Gate(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, gate, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        gate.bucket = Bucket(client, environment)
        yield gate.bucket
        client.close()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def bucket(s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The bucket, empty, and a machine without scratch or cache."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path / "cache"))
    s3.empty()
    yield s3
    s3.released.set()
