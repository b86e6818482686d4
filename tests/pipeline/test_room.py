"""What lies in a run folder at a time."""

from pathlib import Path
from typing import Any

import pytest

from minitron_nas.families.catalog import layout_of
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.outline import Outline
from minitron_nas.pipeline.devices import Devices
from minitron_nas.pipeline.plan import make_plan, with_overrides
from minitron_nas.pipeline.room import Room, settled
from minitron_nas.space.axes import load_space


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
    assert training == max(beside * 90_000 * 2 * (12 + 2 * 4), 5_400_000)  # or the report


def test_neurons_of_experts_are_scored_one_by_one(tiny_settings: dict[str, Any]) -> None:
    shape = load_space("qwen3-30b-a3b").source_architecture()
    teacher = Outline.of_shape("a shape", shape, layout_of(shape.model_type))
    values = {"teacher": "x", "sizes": ["10M"], "data": "x", **tiny_settings}
    plan = make_plan(with_overrides(values, ("start=select", "text.calibration_samples=64")))
    room, num_neurons = Room.of(plan, teacher, {}, 1000, Devices("x", 1, 10**10)), 48 * 128 * 768
    assert 24 * num_neurons < room.others < 1.1 * 24 * num_neurons
    assert 16 * 24 * num_neurons < room.training < 1.1 * 16 * 24 * num_neurons


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        (("baselines=false",), "online"),
        (("baselines=[depth_only]",), "top_k"),
        (("baselines=false", "members_per_size=2"), "top_k"),
        (("baselines=false", "sizes=[90k, 60k]"), "top_k"),  # of one teacher
        (("baselines=false", "sizes=[90k, 60k]", "kd_teacher=previous"), "online"),
    ],
)
def test_the_most_probable_tokens_are_kept_where_trainings_share_them(
    tiny_settings: dict[str, Any], trained_teacher: Path, overrides: tuple[str, ...], kind: str
) -> None:
    values = {"teacher": "x", "sizes": ["90k"], "data": "x", **tiny_settings}
    few = ("distillation.top_k=8", "distillation.teacher_signal=auto", "search.num_finalists=2", *overrides)
    teacher = open_checkpoint(trained_teacher).outline()
    with pytest.warns(UserWarning, match="top_k=8"):
        plan = make_plan(with_overrides(values, few))
    num_teachers = 2 if "kd_teacher=previous" in overrides else 1
    free = (
        num_teachers * 2 * 1000 * (8 * 6 + 2)
    )  # half of it takes eight tokens of each distribution, not hidden states
    assert settled(plan, teacher, 1000, free, 2)[0].distillation.teacher_signal == kind
