import os
import sys
import time

import pytest

from minitron_nas.pipeline.clock import StageWork
from minitron_nas.pipeline.display import ConsoleDisplay, Quiet, default_display


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds since the start, under the test's control."""
    now = [0.0]
    for module in ("clock", "display"):
        monkeypatch.setattr(f"minitron_nas.pipeline.{module}.time.monotonic", lambda: now[0])
    return now


def test_a_stage_is_told_on_stderr_when_it_begins_and_when_it_ends(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with ConsoleDisplay().stage("110M distil", "full distillation"):
        clock[0] += 12
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "110M distil: full distillation ...\n110M distil: full distillation, done in 12 s\n"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")]
)
def test_a_time_is_told_in_the_unit_that_people_use(
    clock: list[float], capsys: pytest.CaptureFixture[str], seconds: int, words: str
) -> None:
    with ConsoleDisplay().stage("stage", "work"):
        clock[0] += seconds
    assert capsys.readouterr().err.endswith(f"done in {words}\n")


def test_the_time_left_follows_from_the_work_that_is_done(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    display = ConsoleDisplay()
    display.expect({"first": StageWork(100, 100), "second": StageWork(200, 200)})
    with display.stage("first", "work"):
        clock[0] += 30
    assert capsys.readouterr().err.splitlines()[-1] == "first: work, done in 30 s; about 60 s left"
    with display.stage("second", "work") as progress:
        clock[0] += 30
        progress(1, 2)
    assert "second: 50%; about 30 s left" in capsys.readouterr().err


def test_what_an_earlier_process_finished_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleDisplay().skip("before")
    assert capsys.readouterr().err == "before: finished before\n"


def test_progress_without_a_terminal_is_a_line_every_twenty_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with ConsoleDisplay().stage("stage", "work") as progress:
        for done in range(101):
            clock[0] += 1
            progress(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:-1] == [f"stage: {percent}%" for percent in (19, 39, 59, 79, 99)]


def test_how_a_stage_stands_is_part_of_the_line_that_tells_how_far_it_is(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    display = ConsoleDisplay()
    with display.stage("stage", "work") as progress:
        for done in range(101):
            clock[0] += 1
            display.stand(f"{done} of 100 done")
            progress(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:-1] == [f"stage: {done}%; {done} of 100 done" for done in (19, 39, 59, 79, 99)]
    with display.stage("next", "work") as progress:
        clock[0] += 20
        progress(1, 2)
    assert "next: 50%\n" in capsys.readouterr().err


def test_how_a_stage_stands_is_shown_below_its_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    display = ConsoleDisplay()
    with display.stage("110M tournament", "in rungs") as progress:
        display.stand(f"[bold]1 of 4 done[/bold] {'x' * 200}")
        progress(1, 4)
        time.sleep(0.3)  # the bar is drawn ten times a second
    told = capsys.readouterr().err
    assert "[bold]1 of 4 done[/bold] xxx" in told
    assert "x" * 81 not in told


def test_a_long_line_and_brackets_are_left_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    title = f"load [red]{'x' * 200}[/red]"
    with ConsoleDisplay().stage("stage", title):
        pass
    assert capsys.readouterr().err.splitlines()[0] == f"stage: {title} ..."


def test_a_stage_of_no_work_can_be_finished(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleDisplay().stage("stage", "work") as progress:
        progress(0, 0)
    assert "done in 0 s" in capsys.readouterr().err


def test_a_stage_that_fails_is_not_told_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="fire"), ConsoleDisplay().stage("stage", "work"):
        raise OSError("fire")
    assert "done" not in capsys.readouterr().err


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    display = Quiet()
    display.expect({"stage": StageWork(1, 1)})
    display.skip("stage")
    with display.stage("stage", "work") as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("", "")


def test_without_stderr_there_is_nothing_to_show_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(default_display(), ConsoleDisplay)
    monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(default_display(), Quiet)


def test_bars_and_warnings_of_libraries_are_silenced_here_and_in_processes_to_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.utils import logging

    names = ("DS_ACCELERATOR", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    logging.enable_progress_bar()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    default_display()
    assert not logging.is_progress_bar_enabled()
    assert [os.environ[name] for name in names] == ["cpu", "1", "1"]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", ["runs/[/x]", "tiny[gptq]", "[bold]a[/bold]", "a\x1b[2Jb", "one\ntwo", ":smile:"])
def test_names_are_shown_as_they_are_whatever_a_terminal_would_make_of_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool, name: str
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    display = ConsoleDisplay()
    shown = name.replace("\x1b", "\\x1b").replace("\n", " ")
    with display.stage(name, name) as progress:
        progress(1, 2)
    display.skip(name)
    display.note(f"{name} is noted")
    told = capsys.readouterr().err
    for line in (f"{shown}: {shown}, done in", f"{shown}: finished before", f"{shown} is noted"):
        assert line in told
    assert "\x1b[2J" not in told
