"""The example of a run that is kept beside the code: it can be read, and its report and cards built from it."""

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.show import show
from minitron_nas.reporting.html import write_report
from minitron_nas.reporting.run_record import read_run
from minitron_nas.storage.run_folder import holds_run
from minitron_nas.storage.schemas import RUN_TABLES, TABLES

EXAMPLE = Path(__file__).resolve().parents[2] / "reports" / "example"
MOST_BYTES = 7_000_000
HAS_NO_TASKS = {"benchmarks.parquet", "documents.parquet", "answers.parquet", "differences.parquet", "rates.parquet"}


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("make_example")


@pytest.fixture
def example(tmp_path: Path) -> Path:
    return shutil.copytree(EXAMPLE, tmp_path / "example")


def test_every_table_of_the_example_has_the_columns_that_it_had_when_it_was_written() -> None:
    assert holds_run(EXAMPLE)
    known = {table.file_name: table for table in TABLES}
    assert {path.name for path in EXAMPLE.glob("*.parquet")} == {table.file_name for table in RUN_TABLES} - HAS_NO_TASKS
    for path in EXAMPLE.glob("*.parquet"):
        frame, table = pd.read_parquet(path), known[path.name]
        assert len(frame)
        assert set(frame.columns) <= {column.name for column in table.columns}, path.name
        assert not frame.duplicated(list(table.key)).any(), path.name


def test_the_example_is_read_as_a_family() -> None:
    family, record = Family(EXAMPLE), read_run(EXAMPLE)
    assert [member.name for member in family.members] == ["110M", "94M"]
    assert family.teacher.num_parameters == 134_515_008
    assert set(record.lineages) == {"110M", "94M"}
    assert record.sizes() == ["110M", "94M"]


def test_the_example_is_shown_as_a_finished_run_without_weights() -> None:
    facts = show(str(EXAMPLE)).facts
    assert (facts["finished"], facts["sizes_left"], facts["last_stage"]) == (True, [], "study")
    assert facts["students_without_weights"] == ["110M", "94M"]
    assert facts["hours"] > 0.3


def test_report_and_cards_are_built_from_what_is_kept(example: Path, maker: ModuleType) -> None:
    for path in (example / "report.html", *example.glob("students/*/README.md")):
        path.unlink(missing_ok=True)
    page = write_report(example).read_text(encoding="utf-8")
    assert page.count("115.4M") > 1
    for name in ("timeline", "importance-teacher-heads", "axes-94M", "hypervolume-94M"):
        assert f'id="plot-{name}"' in page
    assert "of shapes held out in turn R² is 0.97" in page
    assert "as the run does not say when it began" not in page
    maker.tell(example)
    for size in ("110M", "94M"):
        card = (example / "students" / size / "README.md").read_text(encoding="utf-8")
        assert f"pruned and distilled to {size}" in card
    assert not (example / ".tables.lock").exists()


def test_trials_of_an_older_run_are_not_in_its_timeline(example: Path) -> None:
    trials = example / "trials.parquet"
    pd.read_parquet(trials).drop(columns="began_seconds").to_parquet(trials)
    page = write_report(example).read_text(encoding="utf-8")
    assert "as the run does not say when it began" in page


def test_the_cards_of_the_example_are_those_that_this_code_writes(example: Path, maker: ModuleType) -> None:
    maker.tell(example)
    for path in sorted(EXAMPLE.glob("students/*/README.md")):
        rebuilt = (example / path.relative_to(EXAMPLE)).read_text(encoding="utf-8")
        reason = "run tests/reporting/make_example.py's tell() on reports/example"
        assert rebuilt == path.read_text(encoding="utf-8"), reason


def test_the_example_is_small_and_names_no_folder_of_a_machine() -> None:
    files = [path for path in EXAMPLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    assert not [path for path in files if path.suffix == ".safetensors"]
    values = [value for path in EXAMPLE.rglob("*.parquet") for value in pd.read_parquet(path).to_numpy().ravel()]
    assert not [value for value in values if isinstance(value, str) and ("/home/" in value or value.startswith("/"))]
    texts = [path.read_text(encoding="utf-8") for path in files if path.suffix in (".json", ".jsonl", ".yaml")]
    assert not [mark for text in texts for mark in ("/home/", '"/', ": /") if mark in text]


def test_an_example_is_made_of_what_tells_a_run(finished_run: Path, tmp_path: Path, maker: ModuleType) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    frame = pd.read_parquet(run / "evaluations.parquet")
    frame.loc[frame["role"] == "teacher", "path"] = "/home/ada/.cache/teacher"
    frame.to_parquet(run / "evaluations.parquet")
    (run / "students" / "110M" / "model.safetensors").write_bytes(b"weights")
    (run / "importance" / "teacher" / "scores.safetensors").write_bytes(b"scores")
    maker.make_example(run, tmp_path / "example")
    assert not list((tmp_path / "example").rglob("*.safetensors"))
    written = pd.read_parquet(tmp_path / "example" / "evaluations.parquet")
    assert written[written["role"] == "teacher"]["path"].tolist() == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert written.drop(columns="path").equals(frame.reindex(columns=written.columns).drop(columns="path"))
    lineage = json.loads((tmp_path / "example" / "students" / "94M" / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["size"] == "94M"
    assert (tmp_path / "example" / "report.html").is_file()
    for name in ("ledger.jsonl", "importance/teacher/scores.parquet"):
        assert (tmp_path / "example" / name).read_bytes() == (run / name).read_bytes()
