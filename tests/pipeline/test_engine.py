"""The engine: a stage runs once for its inputs, and only what it left itself is taken for its work."""

import json
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.errors import RunFolderError
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.engine import Done, Engine, Left, Stage
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.storage.schemas import EXCLUSIONS
from minitron_nas.storage.tables import read_rows


class Work:
    """A stage's action that counts its calls and writes its output."""

    def __init__(self, output: Path) -> None:
        self.output, self.calls = output, 0

    def __call__(self, progress: Any) -> Left:
        self.calls += 1
        self.output.write_text("done")
        return Left({"call": self.calls})


class Noting(Quiet):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "output")


def engine(folder: Path, display: Any = None) -> Engine:
    """An engine as a new process has it."""
    return Engine(RunFolder(folder), display or Quiet())


def run(folder: Path, work: Work, inputs: dict[str, Any], name: str = "stage", **stage: Any) -> Any:
    """Run the stage as a new process would."""
    return engine(folder).run(Stage(name, "work", inputs, outputs=[work.output], **stage), work).result


def test_a_finished_stage_gives_its_result_without_running_again(tmp_path: Path, work: Work) -> None:
    assert [run(tmp_path, work, {"a": 1}) for _ in range(3)] == [{"call": 1}] * 3
    assert work.calls == 1


def test_the_order_of_inputs_is_of_no_importance(tmp_path: Path, work: Work) -> None:
    run(tmp_path, work, {"a": 1, "b": 2})
    run(tmp_path, work, {"b": 2, "a": 1})
    assert work.calls == 1


@pytest.mark.parametrize("inputs", [{"a": 2}, {"a": 1, "b": 1}, {"a": "1"}, {}])
def test_the_engine_says_what_it_would_make(tmp_path: Path, work: Work, inputs: dict[str, Any]) -> None:
    def makes(inputs: dict[str, Any], *, costly: bool = False) -> bool:
        return engine(tmp_path).makes(Stage("stage", "work", inputs, outputs=[work.output], costly=costly))

    assert makes({"a": 1})
    run(tmp_path, work, {"a": 1})
    assert not makes({"a": 1})
    assert makes(inputs)
    work.output.write_text("something else")
    assert makes({"a": 1})
    assert not makes({"a": 1}, costly=True)  # it is refused
    work.output.unlink()
    assert makes({"a": 1}, costly=True)
    assert work.calls == 1


@pytest.mark.parametrize("inputs", [{"a": 2}, {"a": 1, "b": 1}, {"a": "1"}, {}])
def test_changed_inputs_run_again(tmp_path: Path, work: Work, inputs: dict[str, Any]) -> None:
    run(tmp_path, work, {"a": 1})
    assert run(tmp_path, work, inputs) == {"call": 2}


def test_going_back_to_earlier_inputs_is_work_again_for_their_files_are_gone(tmp_path: Path, work: Work) -> None:
    results = [run(tmp_path, work, {"a": value}) for value in (1, 2, 1)]
    assert results == [{"call": 1}, {"call": 2}, {"call": 3}]


def test_a_missing_output_runs_again(tmp_path: Path, work: Work) -> None:
    run(tmp_path, work, {"a": 1})
    work.output.unlink()
    assert run(tmp_path, work, {"a": 1}) == {"call": 2}
    assert run(tmp_path, work, {"a": 1}) == {"call": 2}


@pytest.mark.parametrize("content", ["DONE", "don", "done and more"])
def test_an_output_that_has_changed_is_made_again_and_said(tmp_path: Path, work: Work, content: str) -> None:
    run(tmp_path, work, {"a": 1})
    work.output.write_text(content)
    display = Noting()
    stage = Stage("stage", "work", {"a": 1}, outputs=[work.output])
    assert engine(tmp_path, display).run(stage, work).result == {"call": 2}
    assert work.output.read_text() == "done"
    assert display.notes == [f"stage: {work.output} is not what was written, and is made again"]


def test_an_output_that_was_dear_and_has_changed_is_refused_by_name_until_it_is_deleted(
    tmp_path: Path, work: Work
) -> None:
    run(tmp_path, work, {"a": 1}, costly=True)
    work.output.write_text("DONE")
    message = r"output is not what the stage 'stage' wrote; restore it, or delete it and repeat the command"
    for _ in range(2):
        with pytest.raises(RunFolderError, match=message):
            run(tmp_path, work, {"a": 1}, costly=True)
    work.output.unlink()
    assert run(tmp_path, work, {"a": 1}, costly=True) == {"call": 2}


def test_two_stages_with_the_same_inputs_do_not_mix(tmp_path: Path, work: Work) -> None:
    assert [run(tmp_path, work, {"a": 1}, name) for name in ("one", "two")] == [{"call": 1}, {"call": 2}]


def test_a_stage_runs_again_when_one_that_it_needs_has_left_something_else(tmp_path: Path) -> None:
    source, calls = tmp_path / "source", []

    def both(value: int) -> None:
        ours = engine(tmp_path)

        def write(progress: Any) -> Left:
            source.write_text(str(value))
            return Left()

        def build(progress: Any) -> Left:
            calls.append(source.read_text())
            return Left()

        needed = ours.run(Stage("source", "write", {"value": value % 10}, outputs=[source]), write)
        ours.run(Stage("building", "build", {}, needs=[needed]), build)

    both(1)
    both(1)
    assert calls == ["1"]
    source.unlink()
    both(1)
    assert calls == ["1"], "it was made again as it was"
    source.unlink()
    both(11)
    assert calls == ["1", "11"], "for the same inputs it came out otherwise"


def test_what_a_stage_needs_is_looked_at_again_before_it_runs(tmp_path: Path, work: Work) -> None:
    ours = engine(tmp_path)
    needed = ours.run(Stage("source", "work", {}, outputs=[work.output]), work)
    work.output.write_text("DONE")
    with pytest.raises(RunFolderError, match=r"output is not what the stage 'source' wrote; delete it and repeat"):
        ours.run(Stage("building", "build", {}, needs=[needed]), lambda progress: pytest.fail("it ran"))


def test_a_stage_that_fails_is_not_recorded_and_runs_again(tmp_path: Path, work: Work) -> None:
    def fail(progress: Any) -> Left:
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        engine(tmp_path).run(Stage("stage", "work", {"a": 1}), fail)
    assert run(tmp_path, work, {"a": 1}) == {"call": 1}


def test_the_ledger_has_one_line_per_stage_with_its_time(tmp_path: Path, work: Work) -> None:
    for name in ("one", "two", "one"):
        run(tmp_path, work, {"a": 1}, name)
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["one", "two"]
    assert all(line["seconds"] >= 0 and line["finished"].endswith("+00:00") for line in lines)


def test_a_line_that_a_killed_process_left_half_written_costs_only_its_own_stage(tmp_path: Path, work: Work) -> None:
    for name in ("one", "two"):
        run(tmp_path, work, {"a": 1}, name)
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-20])
    assert run(tmp_path, work, {"a": 1}, "one") == {"call": 1}
    assert run(tmp_path, work, {"a": 1}, "two") == {"call": 3}
    assert run(tmp_path, work, {"a": 1}, "two") == {"call": 3}


# What stages say in the tables


def say(engine: Engine, name: str, *numbers: int, inputs: int = 0) -> Done:
    """Run a stage that says some rows."""
    rows = [{"size": name, "rule": str(number), "reason": "", "num_shapes": number} for number in numbers]
    return engine.run(Stage(name, "say", {"inputs": inputs}), lambda progress: Left(rows=((EXCLUSIONS, rows),)))


def said(folder: Path) -> list[tuple[str, int]]:
    return [(row["size"], row["num_shapes"]) for row in read_rows(folder, EXCLUSIONS)]


def test_a_table_holds_what_every_stage_said_last_in_the_order_of_the_run(tmp_path: Path) -> None:
    ours = engine(tmp_path)
    say(ours, "one", 1, 2)
    say(ours, "two", 3)
    assert said(tmp_path) == [("one", 1), ("one", 2), ("two", 3)]
    say(ours, "one", 4, inputs=1)
    assert said(tmp_path) == [("one", 4), ("two", 3)]
    say(ours, "one", 1, 2)
    assert said(tmp_path) == [("one", 1), ("one", 2), ("two", 3)]


def test_a_table_that_was_deleted_is_there_again_with_all_rows(tmp_path: Path) -> None:
    say(engine(tmp_path), "one", 1)
    say(engine(tmp_path), "two", 2)
    (tmp_path / EXCLUSIONS.file_name).unlink()
    engine(tmp_path)
    assert said(tmp_path) == [("one", 1), ("two", 2)]


def test_a_stage_whose_rows_are_gone_or_have_changed_says_them_again(tmp_path: Path) -> None:
    say(engine(tmp_path), "one", 1)
    say(engine(tmp_path), "two", 2)
    file = RunFolder(tmp_path).rows("two") / EXCLUSIONS.file_name
    for damage in (file.unlink, lambda: file.write_bytes(b"PAR1")):
        damage()
        ours = engine(tmp_path)
        assert said(tmp_path) == [("one", 1)]
        say(ours, "two", 2)
        assert said(tmp_path) == [("one", 1), ("two", 2)]


def test_a_stage_that_says_nothing_any_more_has_no_rows(tmp_path: Path) -> None:
    say(engine(tmp_path), "one", 1)
    ours = engine(tmp_path)
    ours.run(Stage("one", "say", {"inputs": 1}), lambda progress: Left())
    ours.finish()
    assert not (tmp_path / EXCLUSIONS.file_name).exists()


def test_what_a_run_asks_for_no_more_leaves_the_tables_when_it_is_finished(tmp_path: Path) -> None:
    for name in ("one", "two"):
        say(engine(tmp_path), name, 1)
    ours = engine(tmp_path)
    say(ours, "one", 1)
    assert said(tmp_path) == [("one", 1), ("two", 1)]
    ours.finish()
    assert said(tmp_path) == [("one", 1)]
