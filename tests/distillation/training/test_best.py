"""Which weights of a training are kept: those of the best validation, the untrained ones included."""

from math import nan

import pytest
from safetensors.torch import load_file
from torch import nn

from minitron_nas.distillation.training.best import BestWeights
from minitron_nas.errors import CheckpointError


def a_student(value):
    """One weight, which says after which step it is the student's."""
    student = nn.Linear(1, 1, bias=False)
    student.weight.data.fill_(value)
    return student


def kept(folder, file, values, judge="kl_nats", history=(), last_step=4):
    """Judge a training's validations by step, and return what is exported."""
    best = BestWeights(folder, file, last_step, judge, history, writes=True)
    for step, value in values.items():
        best.judge(step, {"eval_kl_nats": value, "eval_loss_nats": -value}, a_student(float(step)))
    best.export(lambda target: target.write_text("the last"))
    return load_file(file)["weight"].item() if file.read_bytes()[:3] != b"the" else "the last"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({0: 3.0, 2: 2.0, 4: 1.0}, "the last"),
        ({0: 3.0, 2: 1.0, 4: 2.0}, 2.0),
        ({0: 1.0, 2: 2.0, 4: 3.0}, 0.0),
        ({0: 1.0, 2: 1.0, 4: 1.0}, 0.0),
        ({0: nan, 2: 2.0, 4: 3.0}, 2.0),
        ({0: nan, 2: nan, 4: nan}, "the last"),
    ],
    ids=str,
)
def test_the_first_of_the_lowest_validations_is_exported(tmp_path, values, expected):
    assert kept(tmp_path, tmp_path / "out.safetensors", values) == expected


def test_by_the_other_number_the_other_weights_are_exported(tmp_path):
    values = {0: 1.0, 2: 3.0, 4: 2.0}
    assert kept(tmp_path / "kl", tmp_path / "kl.safetensors", values) == 0.0
    assert kept(tmp_path / "loss", tmp_path / "loss.safetensors", values, judge="loss_nats") == 2.0


def names(folder):
    return sorted(path.name for path in folder.glob("best-*"))


def test_what_a_checkpoint_names_stays_until_the_next_checkpoint(tmp_path):
    best = BestWeights(tmp_path, tmp_path / "out", 9, "kl_nats", (), writes=True)
    seen = []
    for step, value, saves in ((0, 5.0, False), (1, 4.0, True), (2, 3.0, False), (3, 2.0, False), (4, 2.5, True)):
        best.judge(step, {"eval_kl_nats": value}, a_student(0.0))
        seen.append(names(tmp_path))
        if saves:
            best.begin_checkpoint()
            best.stand()
            seen.append(names(tmp_path))
    assert seen == [
        ["best-0"],
        ["best-1"], ["best-1"],
        ["best-1", "best-2"],
        ["best-1", "best-3"],
        ["best-1", "best-3"], ["best-3"],
    ]  # fmt: skip


def test_what_a_checkpoint_names_that_is_being_written_stays_beside_those_of_the_last_whole_one(tmp_path):
    best = BestWeights(tmp_path, tmp_path / "out", 9, "kl_nats", (), writes=True)
    best.judge(0, {"eval_kl_nats": 5.0}, a_student(0.0))
    best.begin_checkpoint()
    best.stand()
    best.judge(1, {"eval_kl_nats": 4.0}, a_student(0.0))
    best.begin_checkpoint()
    for step in (2, 3):
        best.judge(step, {"eval_kl_nats": 4.0 - step}, a_student(0.0))
        assert names(tmp_path) == ["best-0", "best-1", f"best-{step}"]
    best.stand()
    assert names(tmp_path) == ["best-1", "best-3"]


def test_a_training_that_goes_on_finds_the_best_before_it_and_forgets_what_came_after(tmp_path):
    kept(tmp_path, tmp_path / "first", {0: 5.0, 1: 2.0}, last_step=9)
    history = [{"step": 0, "eval_kl_nats": 5.0}, {"step": 1, "loss": 1.0}, {"step": 1, "eval_kl_nats": 2.0}]
    assert kept(tmp_path, tmp_path / "again", {2: 3.0, 4: 4.0}, history=history) == 1.0
    BestWeights(tmp_path, tmp_path / "out", 9, "kl_nats", (), writes=True)
    assert names(tmp_path) == []


def test_damaged_weights_are_named(tmp_path):
    best = BestWeights(tmp_path, tmp_path / "out", 4, "kl_nats", (), writes=True)
    best.judge(0, {"eval_kl_nats": 1.0}, a_student(1.0))
    file = tmp_path / "best-0" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best-0/model\.safetensors cannot be used"):
        best.export(lambda target: None)


def test_a_process_that_does_not_write_leaves_nothing(tmp_path):
    best = BestWeights(tmp_path, tmp_path / "out", 4, "kl_nats", (), writes=False)
    best.judge(0, {"eval_kl_nats": 1.0}, a_student(1.0))
    best.export(lambda target: None)
    assert list(tmp_path.iterdir()) == []
