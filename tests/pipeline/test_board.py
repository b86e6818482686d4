"""The line that says how a stage stands."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minitron_nas.execution.runner import Outcome, Tally
from minitron_nas.pipeline import board as module
from minitron_nas.pipeline.board import Board
from minitron_nas.progress import silent
from minitron_nas.search.contest import trial_key


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds since the start, under the test's control."""
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def ended(**kls: float | None) -> dict[str, Outcome]:
    return {
        key: Outcome(key, "failed" if kl is None else "completed", None if kl is None else {"kl_nats": kl}, None, 1.0)
        for key, kl in kls.items()
    }


def test_a_screening_counts_over_its_rounds_and_keeps_the_best_of_all(told: list[str]) -> None:
    board = Board(silent, told.append, most=16)
    board.see(Tally(["a", "b", "c"], 1, ended(a=0.5, b=None)))
    assert told[-1] == "1 of 16 done, 1 running, 1 failed; best KL 0.500 nats, a"
    board.see(Tally(["d", "e"], 2, {}))
    board.see(Tally(["d", "e"], 1, ended(d=float("nan"))))
    assert told[-1] == "2 of 16 done, 1 running, 1 failed; best KL 0.500 nats, a"


def test_a_tournament_counts_rung_by_rung_and_names_the_shape(told: list[str]) -> None:
    board = Board(silent, told.append)
    first = [trial_key(name, 1) for name in ("a", "b")]
    board.see(Tally(first, 0, ended(**dict(zip(first, (0.5, 0.6), strict=True)))))
    board.see(Tally([trial_key("a", 2)], 1, {}))
    assert told[-1] == "rung 2: 0 of 1 done, 1 running, 0 failed; best KL 0.500 nats, a"


def test_tokens_a_second_are_those_of_this_process_and_begin_anew_where_another_work_begins(
    told: list[str], clock: list[float]
) -> None:
    shown = list[tuple[int, int]]()
    board = Board(lambda *far: shown.append(far), told.append)
    board.tokens(5_000, 10_000)  # another process came so far
    assert told[-1] == ""
    clock[0] = 2.0
    board.tokens(7_000, 10_000)
    assert told[-1] == "1,000 tokens/s"
    board.tokens(0, 4_000)
    clock[0] = 4.0
    board.tokens(100, 4_000)
    assert told[-1] == "50.0 tokens/s"
    assert shown == [(5_000, 10_000), (7_000, 10_000), (0, 4_000), (100, 4_000)]


@pytest.mark.parametrize(("judge", "word"), [("kl_nats", "KL"), ("loss_nats", "loss")])
def test_a_training_tells_its_steps_as_tokens_and_its_best_validation(told: list[str], judge: str, word: str) -> None:
    job: Any = SimpleNamespace(schedule=SimpleNamespace(tokens_per_step=512), judge=judge, best=lambda: (8, 0.5))
    shown = list[tuple[int, int]]()
    Board(lambda *far: shown.append(far), told.append).training(job)(10, 100)
    assert shown == [(5_120, 51_200)]
    assert told == [f"best {word} 0.500 nats after 4.096k tokens"]


def test_trainings_side_by_side_are_told_of_one_by_one_and_as_tokens_together(told: list[str]) -> None:
    def job(name: str, far: tuple[int, int] | None, best: tuple[int, float] | None) -> Any:
        schedule = SimpleNamespace(tokens_per_step=512, num_tokens=51_200)
        return SimpleNamespace(
            checkpoints=Path(name), schedule=schedule, judge="kl_nats", progress=lambda: far, best=lambda: best
        )

    shown = list[tuple[int, int]]()
    jobs = [job("4B", (50, 100), (8, 0.5)), job("4B-depth-only", (3, 100), None), job("4B-random-shape", None, None)]
    board = Board(lambda *far: shown.append(far), told.append)
    board.starting(1, 10)
    tell, line = board.side_by_side(jobs), "4B 50%, best KL 0.500 nats after 4.096k tokens; 4B-depth-only 3%"
    assert told[1:] == [f"{line}; 4B-random-shape 0%"]  # at once
    shown.clear()
    tell(530, 3000)
    assert told[2:] == [f"{line}; 4B-random-shape 0%"]
    assert shown == [(27_136, 153_600)]


def test_the_repair_of_a_start_is_told_while_the_stage_itself_has_not_begun(told: list[str]) -> None:
    shown = list[tuple[int, int]]()
    Board(lambda *far: shown.append(far), told.append).starting(512, 2_048)
    assert told == ["25% of the repair of what it starts with"]
    assert shown == [(0, 2_048)]


def test_a_training_that_is_done_tells_of_the_validation_after_its_last_step(told: list[str]) -> None:
    best = [(0, 1.0)]
    schedule = SimpleNamespace(tokens_per_step=512, num_steps=100)
    job: Any = SimpleNamespace(schedule=schedule, judge="kl_nats", best=lambda: best[-1])

    def work(tell: Any) -> Any:
        tell(100, 100)
        best.append((100, 0.5))
        return "a result"

    assert Board(lambda *far: None, told.append).trained(job, work) == "a result"
    assert [line.partition(";")[0] for line in told] == [
        "best KL 1.000 nats after 0 tokens",
        "best KL 1.000 nats after 0 tokens",
        "best KL 0.500 nats after 51.2k tokens",
    ]
