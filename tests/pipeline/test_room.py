"""What lies in a run folder at a time."""

from pathlib import Path
from typing import Any

import pytest

from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline.devices import Devices
from minitron_nas.pipeline.plan import make_plan, with_overrides
from minitron_nas.pipeline.room import Room


@pytest.mark.parametrize(
    ("overrides", "num_devices", "beside"),
    [
        ((), 1, 1),
        ((), 8, 1),  # each takes all
        (("runner.num_processes=4",), 8, 2),
        (("runner.num_processes=1",), 8, 3),
        (("runner.num_processes=1", "runner.kind=local"), 8, 1),
        (("runner.address=auto",), 1, 3),  # whatever it has
    ],
)
def test_trainings_that_run_beside_each_other_have_checkpoints_at_once(
    tiny_settings: dict[str, Any],
    trained_teacher: Path,
    overrides: tuple[str, ...],
    num_devices: int,
    beside: int,
) -> None:
    values = {"teacher": "x", "sizes": ["90k"], "data": "x", **tiny_settings}
    few = ("baselines=[depth_only, random_weights]", "search=screen-only", "runner.kind=ray", *overrides)
    plan, teacher = make_plan(with_overrides(values, few)), open_checkpoint(trained_teacher).outline()
    training = Room.of(plan, teacher, {}, 1000, Devices("x", num_devices, 10**10)).training
    assert training == max(beside * 90_000 * 2 * (12 + 2 * 4), 5_000_000)  # or the report
