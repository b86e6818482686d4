from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)


def test_trials_on_ray_give_what_trials_in_one_process_give(
    build: Any, uninterrupted: Any, finished: Callable[[Path], Any], tmp_path: Path
) -> None:
    search = ["90k screen", "90k tournament", "study"]
    uninterrupted.copy_without(search, tmp_path / "run")
    told = build.finish(tmp_path / "run", "--set=runner=ray")
    assert told.code == 0, told.err
    again = finished(tmp_path / "run")
    assert again.stages()[-3:] == search
    again.assert_equals(uninterrupted)
