"""Runs that are kept at a URI: what goes there, what stays on scratch, and who may go on with them."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest

from minitron_nas.errors import MachineError, PlanError, RunFolderError
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.family import Family
from minitron_nas.storage.cache import scratch_folder
from minitron_nas.storage.schemas import RUN_TABLES
from minitron_nas.storage.tables import read_frame

URI = "memory://bucket/run"
MEASURED = ("seconds",)


class Listening(Quiet):
    """Remembers what was finished before, what was done and what was noted."""

    def __init__(self) -> None:
        self.skipped: list[str] = []
        self.done: list[str] = []
        self.notes: list[str] = []

    def skip(self, stage: str) -> None:
        self.skipped.append(stage)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, stage: str, title: str) -> Any:
        self.done.append(stage)
        return super().stage(stage, title)


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty store of this process, and a machine without scratch or cache."""
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


def names(files: Any) -> set[str]:
    return {path.removeprefix("/bucket/run/") for path in files.find("/bucket/run")}


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    found = {table.file_name: read_frame(folder, table) for table in RUN_TABLES}
    return {name: frame.drop(columns=[one for one in MEASURED if one in frame]) for name, frame in found.items()}


def test_a_run_goes_to_its_uri_and_is_read_from_there(
    build: Callable[..., Family], memory: Any, tmp_path: Path
) -> None:
    display = Listening()
    built = build(URI, display=display)
    there = names(memory)
    assert {"plan.yaml", "ledger.jsonl", "report.html", "evaluations.parquet", "study.journal"} <= there
    assert {"students/90k/model.safetensors", "students/90k/README.md", "students/90k/lineage.json"} <= there
    assert not [name for name in there if name.startswith(("tokens", "signals", "prepared", "trials", "checkpoints"))]
    assert not [name for name in there if name.startswith(".")]
    assert display.notes[-1].startswith(f"{URI} holds the run (")
    shutil.rmtree(scratch_folder())
    read = Family(URI)
    for name, frame in tables(read.path).items():
        assert len(frame) or name not in there
    assert not list(read.path.rglob("model.safetensors"))
    (member,) = read.members
    assert (member.path / "model.safetensors").is_file()
    assert read.report.is_file()
    assert repr(built) != repr(read)
