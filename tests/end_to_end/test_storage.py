"""Builds whose run folder is in a bucket of an S3 server, on machines that lose their disk."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from minitron_nas.pipeline.family import Family
from minitron_nas.storage.cache import scratch_folder
from minitron_nas.storage.schemas import EVALUATIONS, TRIALS

URI = "s3://bucket/run"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def scratch_of(uri: str) -> Path:
    """The folder on scratch that a run works in, beside which what its command tells is kept."""
    folder = scratch_folder() / sha256(uri.encode()).hexdigest()[:16] / "run"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def lose_the_disk() -> None:
    shutil.rmtree(os.environ["MINITRON_NAS_CACHE"], ignore_errors=True)


def finished_before(err: str) -> list[str]:
    words = ": finished before"
    return [line.removesuffix(words) for line in err.splitlines() if line.endswith(words)]


def assert_same(run: Any, other: Any) -> None:
    """Compare two runs, one of which may have made again what had stayed on a disk that was lost."""
    for table in (TRIALS, EVALUATIONS):
        pd.testing.assert_frame_equal(run.rows(table), other.rows(table), check_exact=True)
    assert run.weights() == other.weights() != {}
    assert {*run.stages()} == {*other.stages()}


def marks(bucket: Any) -> list[str]:
    """The whole checkpoints of the student's training in the bucket."""
    return [name for name in bucket.names("run") if name.startswith("checkpoints/90k/") and name.endswith("/complete")]


def test_nothing_is_repeated_on_a_machine_without_scratch(
    bucket: Any, build: Any, uninterrupted: Any, finished: Callable[[Path], Any]
) -> None:
    told = build.finish(scratch_of(URI), f"--out={URI}")
    assert told.code == 0, told.err
    assert f"{URI} holds the run (" in told.err
    stages, first = finished(scratch_of(URI)).stages(), bucket.names("run")
    lose_the_disk()
    told = build.finish(scratch_of(URI), f"--out={URI}")
    assert told.code == 0, told.err
    assert finished_before(told.err) == stages
    again = finished(scratch_of(URI))
    again.assert_equals(uninterrupted)
    assert not (again.path / "tokens").exists()
    assert bucket.names("run").keys() == first.keys()
    evaluations = again.rows(EVALUATIONS)
    lose_the_disk()
    read = Family(URI)
    pd.testing.assert_frame_equal(finished(read.path).rows(EVALUATIONS), evaluations)
    assert not list(read.path.rglob("*/model.safetensors"))
    weights = (read.members[0].path / "model.safetensors").read_bytes()
    assert uninterrupted.weights() == {"students/90k/model.safetensors": weights}


def test_a_run_that_is_asked_to_end_in_a_training_goes_on_in_it_on_another_machine(
    bucket: Any, build: Any, uninterrupted: Any, finished: Callable[[Path], Any]
) -> None:
    bucket.begin(uninterrupted, "90k distil")
    moment = uninterrupted.moment("90k distil", 0.2, sign="checkpoints/90k/checkpoint-*/complete")
    stopped = build.stop(scratch_of(URI), moment, [signal.SIGTERM], f"--out={URI}")
    assert stopped.told.code == 143, stopped.told.err
    (mark,) = marks(bucket)
    step = int(mark.split("/")[2].removeprefix("checkpoint-"))
    lose_the_disk()
    told = build.finish(scratch_of(URI), f"--out={URI}")
    assert told.code == 0, told.err
    assert finished_before(told.err)[-1] == "90k tournament"
    assert step > 0
    assert_same(finished(scratch_of(URI)), uninterrupted)
    assert not marks(bucket)


@pytest.mark.parametrize("stage", ["teacher signal", "90k screen", "90k tournament", "90k distil"])
def test_a_run_killed_in_a_stage_ends_elsewhere_as_if_nothing_had_happened(
    bucket: Any, build: Any, uninterrupted: Any, finished: Callable[[Path], Any], stage: str
) -> None:
    done = bucket.begin(uninterrupted, stage)
    assert build.kill(scratch_of(URI), uninterrupted.moment(stage, 0.5), f"--out={URI}").code == -9
    assert {entry["stage"] for entry in map(json.loads, bucket.read("run/ledger.jsonl").splitlines())} == {*done}
    lose_the_disk()
    told = build.finish(scratch_of(URI), f"--out={URI}")
    assert told.code == 0, told.err
    assert finished_before(told.err) == done
    assert_same(finished(scratch_of(URI)), uninterrupted)


@pytest.mark.parametrize("loses_disk", [True, False])
def test_a_run_killed_in_an_upload_ends_as_if_nothing_had_happened(
    bucket: Any, build: Any, uninterrupted: Any, finished: Callable[[Path], Any], loses_disk: bool
) -> None:
    bucket.begin(uninterrupted, "90k distil")
    bucket.held = "students/90k/model.safetensors"
    assert build.kill_when(scratch_of(URI), bucket.arrived.is_set, f"--out={URI}").code == -9
    there = bucket.names("run")
    assert "students/90k/config.json" in there
    assert "students/90k/model.safetensors" not in there
    assert "90k distil" not in bucket.read("run/ledger.jsonl").decode()
    bucket.held = None
    bucket.released.set()
    if loses_disk:
        lose_the_disk()
    told = build.finish(scratch_of(URI), f"--out={URI}")
    assert told.code == 0, told.err
    assert ("90k distil" in finished_before(told.err)) is not loses_disk
    assert_same(finished(scratch_of(URI)), uninterrupted)


def test_a_network_that_is_lost_is_told_with_what_is_kept_and_the_same_command_goes_on(
    bucket: Any, build: Any, uninterrupted: Any, finished: Callable[[Path], Any]
) -> None:
    bucket.begin(uninterrupted, "90k distil")
    bucket.refused = "students/90k/model.safetensors"
    told = build.finish(scratch_of(URI), f"--out={URI}")
    assert told.code == 2, told.err
    (line,) = [line for line in told.err.splitlines() if line.startswith("minitron-nas: ")]
    assert f"{URI}/students/90k/model.safetensors cannot be written" in line
    assert "8 finished stages and what this one had finished are kept in" in line
    assert f"brings them to {URI}" in line
    bucket.refused = None
    told = build.finish(scratch_of(URI), f"--out={URI}")
    assert told.code == 0, told.err
    assert finished_before(told.err)[-1] == "90k distil"
    assert_same(finished(scratch_of(URI)), uninterrupted)


def test_what_cannot_be_used_is_told_in_a_line(bucket: Any, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = build.finish(scratch_of("s3://nowhere/run"), "--out=s3://nowhere/run")
    assert told.code == 2
    assert told.err.splitlines()[-1].startswith(
        "minitron-nas: s3://nowhere/run cannot be listed (The specified bucket does not exist); see that bucket"
    )
    bucket.write("other/notes.txt", b"notes")
    told = build.finish(scratch_of("s3://bucket/other"), "--out=s3://bucket/other")
    assert told.code == 2
    assert "s3://bucket/other holds other objects (notes.txt) but no plan.yaml of a run" in told.err
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    told = build.finish(scratch_of(URI), f"--out={URI}")
    assert told.code == 2
    assert "Traceback" not in told.err
    assert "Unable to locate credentials" in told.err
