"""A run settles on a teacher signal once, before work, and keeps to it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from minitron_nas.pipeline import build as module
from minitron_nas.pipeline.display import ConsoleDisplay
from minitron_nas.pipeline.family import Family


def signal_of(run: Path) -> str:
    return str(yaml.safe_load((run / "plan.yaml").read_text())["plan"]["distillation"]["teacher_signal"])


@pytest.mark.slow
def test_a_run_keeps_the_signal_that_it_began_with_whatever_the_disk_is_like_later(
    build: Callable[..., Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # 1,024 tokens of 48 channels take about 98 kB in 16 bits, twice that in 32
    monkeypatch.setattr(module, "free_bytes", lambda folder: 100_000)
    first = build(tmp_path / "run", display=ConsoleDisplay())
    assert signal_of(first.path) == "online"
    assert "teacher_signal: online, the teacher runs beside every student" in capsys.readouterr().err.replace("\n", " ")
    assert not list((first.path / "signals").glob("*/train*"))
    again = tmp_path / "again"
    shutil.copytree(first.path, again)
    monkeypatch.setattr(module, "free_bytes", lambda folder: 10**12)
    build(again, display=ConsoleDisplay())
    assert signal_of(again) == "online"
    told = capsys.readouterr().err
    assert "finished before" in told
    assert "teacher_signal" not in told


def test_a_run_with_room_caches_and_says_how_much(
    build: Callable[..., Family], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = build(tmp_path / "run", "search.num_rungs=0", display=ConsoleDisplay()).path
    assert signal_of(run) == "hidden_cache"
    told = capsys.readouterr().err.replace("\n", " ")
    assert "teacher_signal: hidden_cache; final hidden states of 1k tokens take" in told
