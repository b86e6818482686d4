import json
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.engine import Engine
from minitron_nas.storage.run_folder import RunFolder


class Work:
    """A stage's action that counts its calls and writes its output."""

    def __init__(self, output: Path) -> None:
        self.output, self.calls = output, 0

    def __call__(self, progress: Any) -> dict[str, int]:
        self.calls += 1
        self.output.write_text("done")
        return {"call": self.calls}


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "output")


def run(folder: Path, work: Work, inputs: dict[str, Any], name: str = "stage") -> Any:
    """Run the stage as a new process would."""
    return Engine(RunFolder(folder), Quiet()).stage(name, "work", inputs, [work.output], work)


def test_a_finished_stage_gives_its_result_without_running_again(tmp_path: Path, work: Work) -> None:
    assert [run(tmp_path, work, {"a": 1}) for _ in range(3)] == [{"call": 1}] * 3
    assert work.calls == 1


def test_the_order_of_inputs_is_of_no_importance(tmp_path: Path, work: Work) -> None:
    run(tmp_path, work, {"a": 1, "b": 2})
    run(tmp_path, work, {"b": 2, "a": 1})
    assert work.calls == 1


@pytest.mark.parametrize("inputs", [{"a": 2}, {"a": 1, "b": 1}, {"a": "1"}, {}])
def test_changed_inputs_run_again(tmp_path: Path, work: Work, inputs: dict[str, Any]) -> None:
    run(tmp_path, work, {"a": 1})
    assert run(tmp_path, work, inputs) == {"call": 2}


def test_going_back_to_earlier_inputs_needs_no_work(tmp_path: Path, work: Work) -> None:
    for value in (1, 2, 1):
        result = run(tmp_path, work, {"a": value})
    assert (work.calls, result) == (2, {"call": 1})


def test_a_missing_output_runs_again(tmp_path: Path, work: Work) -> None:
    run(tmp_path, work, {"a": 1})
    work.output.unlink()
    assert run(tmp_path, work, {"a": 1}) == {"call": 2}
    assert run(tmp_path, work, {"a": 1}) == {"call": 2}


def test_two_stages_with_the_same_inputs_do_not_mix(tmp_path: Path, work: Work) -> None:
    assert [run(tmp_path, work, {"a": 1}, name) for name in ("one", "two")] == [{"call": 1}, {"call": 2}]


def test_a_stage_that_fails_is_not_recorded_and_runs_again(tmp_path: Path, work: Work) -> None:
    def fail(progress: Any) -> None:
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        Engine(RunFolder(tmp_path), Quiet()).stage("stage", "work", {"a": 1}, [], fail)
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
