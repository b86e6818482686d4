"""What a run does now, read from its folder."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.reporting.now import Now, read_now
from minitron_nas.storage.run_folder import RunFolder


def leave(folder: Path, **changes: Any) -> None:
    values = {
        "stage": "110M tournament",
        "title": "short distillation",
        "fraction": 0.25,
        "standing": "rung 1: 1 of 4 done",
        "seconds_left": 600.0,
        "began": time.time() - 60,
        "at": time.time(),
    }
    path = RunFolder(folder).now
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**values, **changes}))


def test_a_run_says_its_stage_how_it_stands_and_the_time_left(tmp_path: Path) -> None:
    leave(tmp_path)
    told = Now("110M tournament: short distillation, for 60 s", 0.25, "rung 1: 1 of 4 done", "about 10 min left")
    assert read_now(tmp_path) == told
    leave(tmp_path, seconds_left=None)
    assert read_now(tmp_path).left == ""


def test_a_run_that_was_killed_says_how_long_nothing_was_heard_of_it(tmp_path: Path) -> None:
    leave(tmp_path, at=time.time() - 600)
    assert read_now(tmp_path).left == "nothing was heard of it for 10 min"


@pytest.mark.parametrize("content", [None, "", "[]", '{"stage": "a"}', '{"stage": "a", "at": "now"}'])
def test_a_run_that_nobody_works_on_says_nothing(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        leave(tmp_path)
        RunFolder(tmp_path).now.write_text(content)
    assert read_now(tmp_path) is None
