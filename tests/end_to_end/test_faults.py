"""Every fault in every stage, here, on Ray and in two processes: how a command ends, and how the next one goes on."""

import errno
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, Signals
from typing import Any
from uuid import uuid4

import pytest

pytestmark = pytest.mark.timeout(900)

STAGES = (
    "text",
    "teacher signal",
    "teacher evaluate",
    "teacher score",
    "teacher prepare",
    "90k screen",
    "90k tournament",
    "90k distil",
    "90k evaluate",
    "study",
)
TRAININGS = ("90k tournament", "90k distil")
WHERE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "here": (STAGES, ()),
    "ray": (STAGES, ("--set=runner=ray",)),
    "two processes": (TRAININGS, ("--set=runner.num_processes=2",)),
    "ray, two processes": (("90k distil",), ("--set=runner={kind: ray, num_processes: 2, cpus_per_trial: 0.5}",)),
}
"""Of each runner the stages in which it differs, and how a plan asks for it."""
SIGNALS = {
    "SIGINT": [SIGINT],
    "SIGTERM": [SIGTERM],
    "SIGHUP": [SIGHUP],
    "SIGINT twice": [SIGINT, SIGINT],
    "SIGTERM twice": [SIGTERM, SIGTERM],
    "SIGKILL": [SIGKILL],
}
SITUATIONS = [
    pytest.param(stage, where, id=f"{where}-{stage}") for where, (stages, _) in WHERE.items() for stage in stages
]
SMALL_DISK = "512m"
FEW_FILES = 2000


def test_every_stage_of_a_run_is_one_of_these(uninterrupted: Any) -> None:
    assert tuple(uninterrupted.stages()) == STAGES
    uninterrupted.assert_equals(uninterrupted)


def test_the_standard_output_of_a_run_is_its_result_and_nothing_else(uninterrupted: Any) -> None:
    result = json.loads(uninterrupted.path.with_name("run.out").read_text())
    assert [member["name"] for member in result["members"]] == ["teacher", "90k"]


def test_a_run_warns_of_nothing(uninterrupted: Any) -> None:
    told = uninterrupted.path.with_name("run.err").read_text().lower()
    assert not [line for line in told.splitlines() if "warn" in line or "deprecat" in line]


@pytest.fixture(scope="module")
def undisturbed(
    build: Any, uninterrupted: Any, finished: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """Tell what a runner's build ends with; Ray's is that of one process, to the bit."""
    runs: dict[str, Any] = {"here": uninterrupted, "ray": uninterrupted}

    def run_of(where: str) -> Any:
        if where not in runs:
            run = tmp_path_factory.mktemp("undisturbed") / "run"
            told = build.finish(run, *WHERE[where][1])
            assert told.code == 0, told.err
            runs[where] = finished(run)
        return runs[where]

    return run_of


@contextmanager
def disk_of_its_own(place: Path, *mount: str) -> Iterator[Path]:
    """A run folder that is a disk of its own; what the command tells is written beside it."""
    place.mkdir()
    if subprocess.run(["mount", *mount, str(place)], check=False, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that holds little."""
    with disk_of_its_own(tmp_path / "run", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs") as run:
        yield run


@pytest.fixture
def disk_of_few_files(tmp_path: Path) -> Iterator[Path]:
    """A disk that holds few files, of any size."""
    with disk_of_its_own(tmp_path / "run", "-t", "tmpfs", "-o", f"nr_inodes={FEW_FILES}", "tmpfs") as run:
        yield run


@pytest.fixture
def disk_with_a_quota(tmp_path: Path) -> Iterator[Path]:
    """A disk with much room, of which a run may have little."""
    if shutil.which("mkfs.btrfs") is None:
        pytest.skip("a quota is set on btrfs, whose tools (btrfs-progs) are not installed")
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 4 << 30)
    subprocess.run(["mkfs.btrfs", "--quiet", str(disk)], check=True, capture_output=True)
    with disk_of_its_own(tmp_path / "run", "-o", "loop", str(disk)) as run:
        subprocess.run(["btrfs", "quota", "enable", str(run)], check=True)
        subprocess.run(["btrfs", "qgroup", "limit", SMALL_DISK, "0/5", str(run)], check=True)
        yield run


def the_line(err: str) -> str:
    """The one line in which a command says why it ended."""
    assert "Traceback" not in err, err
    (line,) = [line for line in err.splitlines() if line.startswith("minitron-nas: ")]
    return line


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "where"), SITUATIONS)
@pytest.mark.parametrize("sent", SIGNALS)
def test_a_signal(
    build: Any,
    undisturbed: Callable[[str], Any],
    finished: Callable[[Path], Any],
    tmp_path: Path,
    stage: str,
    where: str,
    sent: str,
) -> None:
    signals, settings, run = SIGNALS[sent], WHERE[where][1], tmp_path / "run"
    undisturbed(where).copy_before(stage, run)
    stopped = build.stop(run, undisturbed(where).moment(stage, 0.3), signals, *settings)
    assert stopped.outlived == []
    told = stopped.told
    if signals == [SIGKILL]:
        assert told.code in {0, -9}
    elif told.code:  # else it was faster
        assert told.code in {128 + signum for signum in signals}
        line = the_line(told.err)
        assert line.startswith(f"minitron-nas: stopped by {Signals(told.code - 128).name}; the same command goes on ")
    done = finished(run).stages()
    again = build.finish(run, *settings)
    assert again.code == 0, again.err
    assert again.finished_before() == done
    finished(run).assert_equals(undisturbed(where))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "where"), SITUATIONS)
def test_a_full_disk(
    build: Any,
    undisturbed: Callable[[str], Any],
    finished: Callable[[Path], Any],
    small_disk: Path,
    stage: str,
    where: str,
) -> None:
    run, settings = finished(small_disk), WHERE[where][1]
    assert_goes_on_with_room_again(build, run, undisturbed(where), stage, fill, "No space left on device", *settings)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_takes_no_more_files(
    build: Any, uninterrupted: Any, finished: Callable[[Path], Any], disk_of_few_files: Path, stage: str
) -> None:
    run = finished(disk_of_few_files)
    assert_goes_on_with_room_again(build, run, uninterrupted, stage, fill_with_files, "No space left on device")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_quota_that_is_used_up(
    build: Any, uninterrupted: Any, finished: Callable[[Path], Any], disk_with_a_quota: Path, stage: str
) -> None:
    run = finished(disk_with_a_quota)
    assert_goes_on_with_room_again(build, run, uninterrupted, stage, fill_a_quota, "Disk quota exceeded")


def assert_goes_on_with_room_again(
    build: Any, run: Any, expected: Any, stage: str, take: Callable[[Path], None], what: str, *settings: str
) -> None:
    """A command whose room is taken in a stage says so, and the next one ends as if it never had been."""
    ballast = run.path / ".ballast"

    def take_room() -> None:
        ballast.mkdir(exist_ok=True)
        take(ballast)

    expected.copy_before(stage, run.path)
    told = build.suffer(run.path, expected.moment(stage, 0.3), take_room, *settings)
    shutil.rmtree(ballast, ignore_errors=True)
    assert_told_of_the_disk(told, what)
    again = build.finish(run.path, *settings)
    assert again.code == 0, again.err
    run.assert_equals(expected)


def assert_told_of_the_disk(told: Any, what: str) -> None:
    """A command that met a full disk said so in a line, and what to do, unless it was faster."""
    if told.code:
        assert told.code == 2, told.err
        line = the_line(told.err)
        assert what in line or "free" in line, line
        assert "repeat the command" in line or "the same command goes on" in line, line


def fill(ballast: Path) -> None:
    """Leave no byte of a disk free."""
    state = os.statvfs(ballast)
    if state.f_bavail:
        with (ballast / "bytes").open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), state.f_bavail * state.f_frsize)


def fill_a_quota(ballast: Path) -> None:
    """Leave no block of a quota unused, by blocks that are smaller and smaller."""
    size = 4 << 20
    with (ballast / "bytes").open("ab", buffering=0) as file:
        while size >= 512:
            try:
                file.write(os.urandom(size))
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno != errno.EDQUOT:
                    raise
                size //= 2


def fill_with_files(ballast: Path) -> None:
    """Leave no file of a disk free."""
    while os.statvfs(ballast).f_favail:
        (ballast / uuid4().hex).touch()


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "where"), SITUATIONS)
def test_a_kill_and_then_a_file_that_is_cut(
    build: Any,
    undisturbed: Callable[[str], Any],
    finished: Callable[[Path], Any],
    tmp_path: Path,
    stage: str,
    where: str,
) -> None:
    settings, run = WHERE[where][1], tmp_path / "run"
    undisturbed(where).copy_before(stage, run)
    build.kill(run, undisturbed(where).moment(stage, 0.6), *settings)
    files = sorted(file for file in run.rglob("*") if file.is_file() and file.name != ".lock" and file.stat().st_size)
    damaged = random.Random(f"{stage} {where}").choice(files)
    whole = damaged.read_bytes()
    os.truncate(damaged, len(whole) // 2)
    again = build.finish(run, *settings)
    if again.code:
        assert again.code == 2, again.err
        named = damaged.name in the_line(again.err) or (damaged.name == "plan.yaml" and "plan" in again.err)
        assert named, f"{damaged}: {again.err}"
        damaged.write_bytes(whole)
        again = build.finish(run, *settings)
    assert again.code == 0, again.err
    finished(run).assert_same_results(undisturbed(where))
