"""Members drawn to one scale, at the teacher's layers that they were."""

from dataclasses import replace
from pathlib import Path

import pytest

from minitron_nas.reporting.members import list_members
from minitron_nas.reporting.run_record import RunRecord, read_run
from minitron_nas.reporting.shapes import HEIGHT, WIDTH, drawings, teacher_layers
from minitron_nas.storage.lineage import Origin


@pytest.fixture(scope="module")
def run(finished_run: Path) -> RunRecord:
    return read_run(finished_run)


def test_the_teacher_fills_the_drawing(run: RunRecord) -> None:
    teacher = drawings(run, list_members(run))[0]
    assert teacher.title == "teacher"
    assert len(teacher.blocks) == 3 * 30
    assert max(block.x + block.width for block in teacher.blocks) == pytest.approx(WIDTH, abs=0.1)
    assert min(block.y for block in teacher.blocks) == 0
    assert max(block.y for block in teacher.blocks) == pytest.approx(HEIGHT * 29 / 30, abs=0.1)


def test_widths_are_to_the_scale_of_the_teacher(run: RunRecord) -> None:
    widths = {one.title: {block.kind: block.width for block in one.blocks} for one in drawings(run, list_members(run))}
    assert widths["94M"]["neurons"] / widths["teacher"]["neurons"] == pytest.approx(1152 / 1536, rel=0.01)
    assert widths["94M"]["hidden"] / widths["teacher"]["hidden"] == pytest.approx(512 / 576, rel=0.01)
    assert widths["94M"]["heads"] == widths["teacher"]["heads"]


def test_layers_of_a_students_student_are_the_teachers_own(run: RunRecord) -> None:
    assert teacher_layers(run, "110M") == [*range(20), *range(22, 30)]
    assert teacher_layers(run, "94M") == [*range(20), *range(24, 30)]
    student = next(one for one in drawings(run, list_members(run)) if one.title == "94M")
    assert student.dropped == [20, 21, 22, 23]


def test_layers_that_no_lineage_tells_of_stand_on_each_other(run: RunRecord) -> None:
    assert teacher_layers(run, "94M-depth-only") is None
    baseline = next(one for one in drawings(run, list_members(run)) if one.title == "94M depth-only baseline")
    assert (len(baseline.blocks), baseline.dropped) == (3 * 18, None)


def test_a_lineage_that_leads_nowhere_tells_no_layers(run: RunRecord) -> None:
    lost = replace(run.lineages["94M"], source=Origin("gone", None))
    assert teacher_layers(replace(run, lineages={"94M": lost}), "94M") is None


def test_without_the_teachers_shape_nothing_is_drawn(new_run: Path) -> None:
    run = read_run(new_run)
    assert drawings(run, list_members(run)) == []


def test_mixers_are_drawn_where_there_are_any(run: RunRecord) -> None:
    members = list_members(run)
    assert not any(block.kind == "mixers" for block in drawings(run, members)[0].blocks)
    mixed = [
        replace(each, values={**each.values, "mamba_num_heads": heads, "mamba_head_dim": 64})
        for each, heads in zip(members, (16, *(8,) * (len(members) - 1)), strict=True)
    ]
    teacher, student = drawings(run, mixed)[:2]
    widths = [{block.kind: block.width for block in one.blocks} for one in (teacher, student)]
    assert widths[1]["mixers"] / widths[0]["mixers"] == pytest.approx(0.5, rel=0.01)
    assert max(block.x + block.width for block in teacher.blocks) == pytest.approx(WIDTH, abs=0.1)
    assert student.words.endswith("8 Mamba heads of 64 channels")
