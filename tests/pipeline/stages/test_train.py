"""The stage that trains a student, in a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.stages import train
from minitron_nas.search import start


@pytest.fixture
def repaired(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shapes that were repaired layer after layer, as it happens."""
    shapes, repair = list[str](), start.refit_in_sequence

    def remembered(prepared: Any, target: Any, *others: Any) -> Any:
        shapes.append(target.id)
        return repair(prepared, target, *others)

    monkeypatch.setattr(start, "refit_in_sequence", remembered)
    return shapes


def test_a_student_takes_the_start_of_the_trial_that_chose_it(
    begun: Callable[..., Path], repeat: Callable[..., Family], finished: Path, tmp_path: Path, repaired: list[str]
) -> None:
    run = begun(tmp_path / "run", "90k tournament")
    repeat(run)
    assert sorted(repaired) == sorted({*Family(finished).trials["candidate"]})
    assert len(repaired) == 2
    assert Family(run).evaluations.equals(Family(finished).evaluations)


@pytest.mark.parametrize("kept", [True, False])
def test_a_student_whose_training_was_killed_keeps_its_start_unless_that_has_changed(
    begun: Callable[..., Path],
    repeat: Callable[..., Family],
    finished: Path,
    tmp_path: Path,
    repaired: list[str],
    monkeypatch: pytest.MonkeyPatch,
    kept: bool,
) -> None:
    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    run = begun(tmp_path / "run", "90k distil")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "run_training", killed)
        repeat(run)
    (weights,) = run.glob("checkpoints/90k-starts/*/*/model.safetensors")
    if not kept:
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    repeat(run)
    assert len(repaired) == (1 if kept else 2)
    assert Family(run).evaluations.equals(Family(finished).evaluations)
