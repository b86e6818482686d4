"""What a run does now, as its folder says it."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_nas.pipeline import live
from minitron_nas.pipeline.clock import StageWork
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.live import LiveDisplay
from minitron_nas.reporting.now import read_now
from minitron_nas.storage.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_WRITE_SECONDS", 0.01)


def read(path: Path, **wanted: object) -> dict[str, object]:
    """What the file says as soon as it says what is wanted."""
    for _ in range(1_000):
        content = json.loads(path.read_text()) if path.exists() else {}
        if wanted.items() <= content.items():
            return content
        time.sleep(0.01)
    raise AssertionError(f"{content} is not {wanted}")


def test_the_file_says_what_the_display_is_told_until_the_run_ends(tmp_path: Path) -> None:
    path = tmp_path / "work" / "now.json"
    with LiveDisplay(Quiet(), path) as display:
        display.expect({"110M screen": StageWork(100, 100), "110M tournament": StageWork(100, 100)})
        with display.stage("110M screen", "untrained KL") as progress:
            read(path, stage="110M screen", title="untrained KL", fraction=None, standing="")
            display.stand("3 of 16 done")
            progress(3, 16)
            read(path, fraction=3 / 16, standing="3 of 16 done")
        with display.stage("110M tournament", "in rungs"):
            found = read(path, stage="110M tournament", fraction=None, standing="")
            assert isinstance(found["seconds_left"], float)
    assert not path.exists()


def test_a_disk_that_takes_no_file_does_not_disturb_the_run(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file where the folder should be")
    with LiveDisplay(Quiet(), tmp_path / "work" / "now.json") as display, display.stage("stage", "work"):
        time.sleep(0.05)


class Standing(Quiet):
    """Keeps what is said of each stage, and what the folder says at that moment."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines, self.found = folder, list[str](), dict[str, str]()

    def stand(self, text: str) -> None:
        """Keep it."""
        self.lines.append(text)
        time.sleep(0.05)
        if (now := read_now(self.folder)) is not None:
            self.found[now.stage.partition(":")[0]] = now.standing


def test_a_build_tells_its_trials_the_best_of_them_and_its_pace_in_its_folder(
    build: Callable[..., Family], tmp_path: Path
) -> None:
    told = Standing(tmp_path / "run")
    build(tmp_path / "run", "search.num_finalists=2", display=told)
    shape = r"l\d+-h\d+-f\d+-q\d+-k\d+"
    for stage, pattern in (
        ("90k screen", rf"\d of 2 done, \d running, 0 failed; best KL [\d.]+ nats, {shape}"),
        ("90k tournament", rf"rung 1: \d of 2 done, \d running, 0 failed; best KL [\d.]+ nats, {shape}"),
        ("90k distil", r"best KL [\d.]+ nats after \d+ tokens; [\d,.]+ tokens/s"),
    ):
        assert any(re.match(pattern, line) for line in told.lines), (pattern, told.lines)
        assert stage in told.found
    assert not RunFolder(tmp_path / "run").work.exists()
