from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)


@pytest.mark.slow  # the outcomes of each job are held by tests/execution/test_ray_tune.py
@pytest.mark.parametrize(
    "search",
    [
        ["90k tournament", "study"],
        ["90k screen", "90k tournament", "study"],
    ],
    ids=len,
)
def test_trials_on_ray_give_what_trials_in_one_process_give(
    build: Any, uninterrupted: Any, finished: Callable[[Path], Any], tmp_path: Path, search: list[str]
) -> None:
    uninterrupted.copy_without(search, tmp_path / "run")
    told = build.finish(tmp_path / "run", "--set=runner=ray")
    assert told.code == 0, told.err
    again = finished(tmp_path / "run")
    assert again.stages()[-len(search) :] == search
    again.assert_equals(uninterrupted)
