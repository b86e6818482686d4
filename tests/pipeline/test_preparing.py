import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_nas.errors import CheckpointError, DiskSpaceError, PlanError
from minitron_nas.importance.baselines import random_scores
from minitron_nas.importance.tensor_folder import TensorFolder
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline import preparing
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.evaluating import evaluate
from minitron_nas.pipeline.preparing import (
    TakenStart,
    cuts_inputs,
    measure_start,
    needs_moments,
    possible_start,
    repair_student,
)
from minitron_nas.pipeline.pruning import prune
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.settings import Repair
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.tokens import pack

TEXT = TextSettings(sequence_length=64, calibration_samples=16, validation_samples=8)
TOKENS = pack([torch.randint(0, 320, (160,), generator=torch.Generator().manual_seed(0)).numpy()], 20)
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
    teacher = tiny_checkpoint(tmp_path / "teacher", "gemma2")
    result = prune(teacher, tmp_path / "out", {"hidden_size": 36}, data=text_file, text=TEXT, display=Quiet())
    start = json.loads((result.path / "lineage.json").read_text())["start"]
    assert start["channels"].startswith("channels are selected, not rotated: gemma2 has norms on what layers add")
    assert start["repair"].startswith("not repaired, because no neurons or heads leave and gemma2 has norms on")
    assert result.proof is not None


def test_what_can_be_rotated_is_rotated(trained_teacher: Path) -> None:
    checkpoint = open_checkpoint(trained_teacher)
    assert possible_start("rotate", checkpoint) == ("rotate", "channels are rotated")
    assert possible_start("select", checkpoint) == ("select", "channels are selected")


@pytest.mark.parametrize(
    ("model_type", "shape", "repair", "channels", "repaired"),
    [
        ("llama", {"hidden_size": 36}, "ridge", "channels are rotated", "repaired layer after layer"),
        ("llama", {"intermediate_size": 64}, "none", "all channels stay", "nothing is repaired"),
        ("llama", {}, "ridge", "all channels stay", "nothing is repaired"),
        ("gemma2", {"intermediate_size": 64}, "ridge", "all channels stay", "repaired in one pass, not layer after"),
        ("mixtral", {"intermediate_size": 64}, "ridge", "all channels", "repaired layer after layer, experts in one"),
        ("llama", {"num_attention_heads": 2}, "ridge", "all channels stay", "repaired in one pass, not layer after"),
        ("mixtral", {"num_hidden_layers": 3}, "ridge", "all channels stay", "repaired layer after layer"),
    ],
)
def test_what_is_said_of_a_start_is_what_is_done(
    tmp_path: Path, model_type: str, shape: dict[str, int], repair: Repair, channels: str, repaired: str
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", model_type))
    taken = TakenStart.of(checkpoint, checkpoint.architecture.reshaped(shape), "rotate", repair)
    assert taken.channels.startswith(channels)
    assert taken.repair.startswith(repaired)


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


def test_only_what_is_wanted_is_measured_and_kept(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", "llama", num_hidden_layers=2))
    assert measure_start(checkpoint, lambda: TOKENS, False, False, tmp_path) == (None, None)
    rotation, moments = measure_start(checkpoint, lambda: TOKENS, True, False, tmp_path)
    assert moments is None
    assert rotation is not None
    rotation, moments = measure_start(checkpoint, lambda: TOKENS, True, True, tmp_path)
    assert rotation is not None
    assert moments is not None
    names = ("mlp.down_proj", "self_attn.o_proj")
    assert set(TensorFolder(moments)) == {f"model.layers.{n}.{name}.weight" for n in range(2) for name in names}


def test_random_tokens_are_read_for_the_basis_alone(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", "llama", num_hidden_layers=2))
    found, told = {}, []
    for share in (0.0, 0.5):
        work = tmp_path / f"{share}"
        rotation, moments = measure_start(
            checkpoint, lambda: TOKENS, True, True, work, share, progress=lambda *pair: told.append(pair)
        )
        assert rotation is not None
        assert moments is not None
        found[share] = rotation.energies, dict(TensorFolder(moments))
    replaced = TOKENS.with_random_tokens(0.5, checkpoint.architecture.vocab_size)
    expected, _ = measure_start(checkpoint, lambda: replaced, True, False, tmp_path / "replaced", 0.0)
    assert expected is not None
    assert torch.equal(found[0.5][0], expected.energies)
    assert not torch.allclose(found[0.5][0], found[0.0][0], rtol=1e-3)
    assert all(torch.equal(found[0.5][1][name], moment) for name, moment in found[0.0][1].items())
    half = told[: len(told) // 2]
    assert half == sorted(half)
    assert half[-1] == (2 * TOKENS.num_tokens, 2 * TOKENS.num_tokens)


def test_moments_that_the_disk_cannot_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", "llama", num_hidden_layers=2))
    asked = []

    def refuse(folder: Path, num_bytes: int, what: str) -> None:
        asked.append(num_bytes)
        raise DiskSpaceError(what)

    monkeypatch.setattr(preparing, "require_free_bytes", refuse)
    with pytest.raises(DiskSpaceError, match="second moments"):
        measure_start(checkpoint, lambda: TOKENS, True, True, tmp_path)
    assert asked == [4 * (5 * 48**2 + 2 * 48**2 + 2 * 96**2)]


def test_a_family_that_cannot_be_repaired_in_sequence_is_left_as_it_is_cut(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", "olmo2"))
    scores = random_scores(checkpoint.architecture, checkpoint.layout, 0)
    write_prepared(tmp_path / "prepared", PruningOrder.from_scores(scores, checkpoint.architecture, ()))
    prepared = PreparedTeacher.open(checkpoint.path, tmp_path / "prepared")
    target = checkpoint.architecture.reshaped({"intermediate_size": 48})
    assert repair_student(prepared, target, lambda: TOKENS, tmp_path / "work") == {}


@pytest.mark.parametrize(("model_type", "needed"), [("llama", False), ("mixtral", True), ("gemma2", True)])
def test_moments_are_measured_for_what_the_repair_in_sequence_leaves(
    tmp_path: Path, model_type: str, needed: bool
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", model_type))
    shape = checkpoint.architecture.reshaped({"num_key_value_heads": 1})
    assert needs_moments(checkpoint, shape) == needed
    assert not needs_moments(checkpoint, checkpoint.architecture.reshaped({"num_hidden_layers": 3}))


def test_which_shapes_take_inputs_away_from_output_projections(trained_teacher: Path) -> None:
    source = open_checkpoint(trained_teacher).architecture
    assert cuts_inputs(source, source.reshaped({"intermediate_size": 96}))
    assert cuts_inputs(source, source.reshaped({"num_key_value_heads": 1}))
    assert not cuts_inputs(source, source.reshaped({"hidden_size": 36, "num_hidden_layers": 3}))
