"""What `prune` does with each start."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from minitron_nas.errors import CheckpointError, PlanError
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.steps.evaluate import evaluate
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.settings import TextSettings

TEXT = TextSettings(sequence_length=64, calibration_samples=16, validation_samples=8)
SHAPE = {"hidden_size": 36, "intermediate_size": 96}
STARTS = {
    "plain": {"start": "select", "repair": "none"},
    "repaired": {"start": "select", "repair": "ridge"},
    "rotated": {"start": "rotate", "repair": "none"},
    "default": {},
}


@pytest.fixture(scope="module")
def kl(trained_teacher: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """KL to the teacher, untrained, of one shape from each start."""
    root = tmp_path_factory.mktemp("starts")
    other = root / "other.txt"
    other.write_text("A function returns the value of an expression, and None if there is no expression. " * 5)
    found = {}
    for name, choices in STARTS.items():
        path = prune(trained_teacher, root / name, SHAPE, data=text_file, text=TEXT, display=Quiet(), **choices).path
        found[name] = evaluate(path, other, trained_teacher, display=Quiet()).kl_nats or 0.0
    return found


def test_rotation_and_repair_each_bring_a_student_nearer_and_both_together_most(kl: dict[str, float]) -> None:
    assert kl["default"] < kl["rotated"] < kl["plain"]
    assert kl["default"] < kl["repaired"] < kl["plain"]


def test_a_family_that_cannot_be_rotated_is_selected_and_its_lineage_says_why(tmp_path: Path, text_file: Path) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", "olmo2")
    result = prune(teacher, tmp_path / "out", {"hidden_size": 36}, data=text_file, text=TEXT, display=Quiet())
    start = json.loads((result.path / "lineage.json").read_text())["start"]
    assert start["channels"].startswith("channels are selected, not rotated: olmo2 has norms on what layers add")
    assert start["repair"] == "repaired layer after layer"
    assert result.proof is not None


def test_values_that_are_no_numbers_are_named_before_text_meets_them(tmp_path: Path, text_file: Path) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", "llama")
    tensors = load_file(teacher / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(tensors, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.* NaN or infin"):
        prune(teacher, tmp_path / "out", {"intermediate_size": 64}, data=text_file, text=TEXT, display=Quiet())


@pytest.mark.parametrize("choice", [{"start": "rotate"}, {"repair": "ridge"}])
def test_scores_without_text_cannot_be_rotated_or_repaired(tmp_path: Path, choice: dict[str, str]) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", "llama")
    with pytest.raises(PlanError, match=r"scores=magnitude bring no text, .*give --data too"):
        prune(teacher, tmp_path / "out", {"hidden_size": 36}, scores="magnitude", display=Quiet(), **choice)
    assert not (tmp_path / "out").exists()
