"""Whatever happens to a file of a run, the same command gives equal results, or one line that names the file."""

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pandas as pd
import pytest

from minitron_nas.errors import MinitronNasError
from minitron_nas.pipeline.family import Family
from minitron_nas.storage.schemas import RUN_TABLES
from minitron_nas.storage.tables import read_frame


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    """Leave the first half."""
    os.truncate(file, file.stat().st_size // 2)


EACH_IN_CI = 8
"""Of so many kinds one; the nightly tests take all."""

DAMAGES = {"flipped": flip, "cut": cut, "removed": Path.unlink}


@pytest.fixture(scope="module")
def runs(
    finished: Path, begun: Callable[[Path, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A finished run, and the same before its last stages, which read what the others left."""
    return {"finished": finished, "unfinished": begun(tmp_path_factory.mktemp("runs") / "unfinished", "90k distil")}


def files_of(run: Path) -> list[str]:
    """Every file of a run but its locks, which say nothing."""
    return sorted(
        str(file.relative_to(run)) for file in run.rglob("*") if file.is_file() and not file.name.startswith(".lock")
    )


def one_of_each_kind(files: list[str]) -> Iterator[str]:
    """Leave out files that lie as deep in the same part of the run as another of the same suffix."""
    seen = set()
    for file in files:
        kind = (file.partition("/")[0], file.count("/"), Path(file).suffix) if "/" in file else file
        if kind not in seen:
            seen.add(kind)
            yield file


def results(run: Path) -> dict[str, object]:
    """All that the settings and the seed decide."""
    times = ["seconds", "began_seconds"]
    tables = {table.file_name: read_frame(run, table).drop(columns=times, errors="ignore") for table in RUN_TABLES}
    weights = {str(file.relative_to(run)): file.read_bytes() for file in (run / "students").rglob("*.safetensors")}
    return {**tables, **weights}


def check(repeat: Callable[..., Family], run: Path, good: Path, file: str, damage: str, work: Path) -> None:
    copy = work / "run"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    DAMAGES[damage](copy / file)
    try:
        repeat(copy)
    except MinitronNasError as error:
        told = str(error)
        named = Path(file).name in told or (file == "plan.yaml" and f"{copy} was begun with another plan" in told)
        assert named, f"{file} {damage}: {told}"
        assert "\n" not in told, f"{file} {damage}: {told}"
        return
    assert not (copy / "work").exists()
    expected, found = results(good), results(copy)
    assert expected.keys() == found.keys(), f"{file} {damage}"
    for name, value in expected.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, found[name], check_exact=True, obj=f"{file} {damage}: {name}")
        else:
            assert value == found[name], f"{file} {damage}: {name} is another"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("state", ["unfinished", pytest.param("finished", marks=pytest.mark.slow)])
def test_damage_to_a_file_of_each_kind_is_mended_or_named(
    repeat: Callable[..., Family], runs: dict[str, Path], tmp_path: Path, state: str
) -> None:
    step = EACH_IN_CI if state == "unfinished" else 1
    for file, damage in zip(list(one_of_each_kind(files_of(runs[state])))[::step], cycle(DAMAGES), strict=False):
        check(repeat, runs[state], runs["finished"], file, damage, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("state", ["unfinished", "finished"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_to_any_file_is_mended_or_named(
    repeat: Callable[..., Family], runs: dict[str, Path], tmp_path: Path, damage: str, state: str
) -> None:
    for file in files_of(runs[state]):
        check(repeat, runs[state], runs["finished"], file, damage, tmp_path)
