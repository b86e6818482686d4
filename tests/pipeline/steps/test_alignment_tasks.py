"""The tasks of an aligned student: those that it is asked for, and those of the run that it joins."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from lm_eval.tasks import TaskManager

from minitron_nas.alignment.settings import AlignmentSettings
from minitron_nas.errors import PlanError
from minitron_nas.evaluation import lm_eval
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.steps.align import Aligned, align
from minitron_nas.pipeline.steps.tasks import benchmark, task_tables
from minitron_nas.reporting.html import render_report
from minitron_nas.reporting.run_record import read_run
from minitron_nas.storage.run_folder import LAYOUT
from minitron_nas.storage.schemas import ANSWERS, BENCHMARKS, DIFFERENCES, DOCUMENTS
from minitron_nas.storage.tables import read_rows, write_rows
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.settings import TextSettings

TASKS = Path(__file__).parents[2] / "evaluation" / "tasks"
ASKED = EvaluationSettings(tasks=("tiny_sums@1",), include_path=str(TASKS))
SEED = 3


@pytest.fixture(autouse=True)
def _offline_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("minitron_nas.models.loading.compute_dtype", lambda device: torch.float32)
    # Reading all tasks that lm-eval brings takes ten seconds.
    monkeypatch.setattr(lm_eval, "TaskManager", functools.partial(TaskManager, include_defaults=False))
    monkeypatch.chdir(TASKS)  # the task names its data relative to here


@pytest.fixture
def teach(tmp_path: Path) -> Callable[..., Aligned]:
    """Align a student for two steps."""
    data = tmp_path / "chats.jsonl"
    turns = ([{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "It is so."}] for n in range(8))
    data.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    settings = AlignmentSettings(learning_rate=4e-3, epochs=1, batch_sequences=1, num_evaluations=1)

    def call(student: Path, out: Path, **changes: Any) -> Aligned:
        text = TextSettings(sequence_length=64)
        return align(student, data, out, settings=settings, text=text, display=Quiet(), **changes)

    return call


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose members have answered the tasks of its plan: the teacher, and a student called 90k."""
    folder = tmp_path / "run"
    models = {"teacher": tiny_checkpoint(tmp_path / "teacher", "llama", 1)}
    models["90k"] = tiny_checkpoint(folder / "students" / "90k", "llama", 2)
    (models["90k"] / "lineage.json").write_text(json.dumps({"size": "90k", "proof": None}))
    plan = {"sizes": ["90k"], "seed": SEED, "evaluation": ASKED.model_dump(mode="json")}
    content = {"layout": LAYOUT, "plan": plan, "teacher": {"fingerprint": "t"}, "data": {}}
    (folder / "plan.yaml").write_text(yaml.safe_dump(content))
    found = {name: dict(rows_by_table(name, path)) for name, path in models.items()}
    for table in ("benchmarks.parquet", "documents.parquet"):
        of = next(each for each in (BENCHMARKS, DOCUMENTS) if each.file_name == table)
        write_rows(folder, of, [row for rows in found.values() for row in rows[table]])
    return folder


def rows_by_table(name: str, path: Path, asked: EvaluationSettings = ASKED) -> list[tuple[str, Any]]:
    """What a member of the run has in its tables, by the function that asks members."""
    return [(table.file_name, rows) for table, rows in task_tables(name, benchmark(path, asked, SEED))]


def test_a_student_that_joins_a_run_is_asked_its_tasks_as_its_members_were(
    run: Path, teach: Callable[..., Aligned]
) -> None:
    aligned = teach(run / "students" / "90k", run / "aligned" / "90k-chat")
    expected = dict(rows_by_table("90k-chat", aligned.path))
    assert read_rows(aligned.path, BENCHMARKS) == expected["benchmarks.parquet"]
    assert read_rows(aligned.path, DOCUMENTS) == expected["documents.parquet"]
    assert [row["num_fewshot"] for row in aligned.benchmarks] == [1, 1]
    members = {row["model"]: row for row in read_rows(run, BENCHMARKS) if row["metric"] == "acc,none"}
    (mine,) = [row for row in aligned.benchmarks if row["metric"] == "acc,none"]
    told = {
        row["other"]: (row["size"], row["num_documents"], row["difference"])
        for row in read_rows(aligned.path, DIFFERENCES)
        if row["metric"] == "acc,none"
    }
    assert told == {
        name: ("90k", 5, pytest.approx(mine["value"] - members[name]["value"])) for name in ("teacher", "90k")
    }


def test_the_report_shows_an_aligned_students_tasks_beside_the_members_and_its_card_tells_them(
    run: Path, teach: Callable[..., Aligned]
) -> None:
    before = render_report(read_run(run)).partition('id="benchmarks"')[2].partition("</section>")[0]
    assert "acc_norm,none" in before
    assert "aligned/90k-chat" not in before
    aligned = teach(run / "students" / "90k", run / "aligned" / "90k-chat")
    page = render_report(read_run(run)).partition('id="benchmarks"')[2].partition("</section>")[0]
    assert ">aligned/90k-chat</th>" in page
    assert "aligned/90k-chat against what it was" in page
    (row,) = [row for row in aligned.benchmarks if row["metric"] == "acc,none"]
    value = f"{row['value']:.3f}"
    line = next(line for line in page.splitlines() if "<td>acc,none</td>" in line)
    assert f"{value} <small>± {row['standard_error']:.3f}</small>" in line.rpartition("<td")[2]
    card = (aligned.path / "README.md").read_text()
    assert "| task | metric | shots | documents | value | less teacher | less 90k |\n|---|" in card
    assert f"| tiny\\_sums (v2.0) | acc,none | 1 | 5 | {value} ± {row['standard_error']:.3f} | " in card


def test_what_is_asked_for_takes_the_place_of_what_the_run_asks(run: Path, teach: Callable[..., Aligned]) -> None:
    given = EvaluationSettings(limit=3, keep_answers=True)
    aligned = teach(run / "students" / "90k", run / "aligned" / "few", evaluation=given)
    assert {(row["task"], row["limit"], row["num_documents"]) for row in aligned.benchmarks} == {("tiny_sums", 3, 3)}
    assert len(read_rows(aligned.path, ANSWERS)) == 3
    assert not (aligned.path / DIFFERENCES.file_name).exists(), "not the same documents"
    none = teach(run / "students" / "90k", run / "aligned" / "none", evaluation=EvaluationSettings(tasks=()))
    assert none.benchmarks == ()
    assert not (none.path / BENCHMARKS.file_name).exists()
    assert "## Tasks" not in (none.path / "README.md").read_text()


def test_a_student_by_itself_is_asked_what_is_asked_for_and_held_against_what_it_had_answered(
    tmp_path: Path, teach: Callable[..., Aligned]
) -> None:
    student = tiny_checkpoint(tmp_path / "student", "llama")
    assert teach(student, tmp_path / "unasked").benchmarks == ()
    first = teach(student, tmp_path / "first", evaluation=ASKED)
    assert [row["task"] for row in first.benchmarks] == ["tiny_sums", "tiny_sums"]
    assert read_rows(first.path, DIFFERENCES) == []
    second = teach(first.path, tmp_path / "second", evaluation=ASKED)
    assert {row["other"] for row in read_rows(second.path, DIFFERENCES)} == {"first"}


def test_a_task_that_lm_eval_does_not_know_is_refused_before_any_model_is_read(
    run: Path, tmp_path: Path, teach: Callable[..., Aligned]
) -> None:
    unknown = EvaluationSettings(tasks=("tiny_products",))
    with pytest.raises(PlanError, match=r"evaluation\.tasks: lm-eval knows no task tiny_products"):
        teach(tmp_path / "gone", run / "aligned" / "x", evaluation=unknown)
    content = yaml.safe_load((run / "plan.yaml").read_text())
    content["plan"]["evaluation"]["tasks"] = ["two words"]
    (run / "plan.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(PlanError, match=r"^evaluation of .*plan\.yaml: tasks\.0: 'two words' is no task"):
        teach(tmp_path / "gone", run / "aligned" / "x")
