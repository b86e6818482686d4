"""What a source is given before it is cut."""

from pathlib import Path
from typing import Any

import pytest
import torch

from minitron_nas.errors import DiskSpaceError
from minitron_nas.importance.moments import Readers
from minitron_nas.importance.passes import CalibrationPass
from minitron_nas.importance.tensor_folder import TensorFolder
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.progress import Progress
from minitron_nas.pruning import start as preparing
from minitron_nas.pruning.settings import Repair, StartSettings
from minitron_nas.pruning.start import TakenStart, keep_moments, measure_start, possible_start
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.packing import pack

TOKENS = pack([torch.randint(0, 320, (160,), generator=torch.Generator().manual_seed(0)).numpy()], 20)


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
        ("gemma2", {"intermediate_size": 64}, "ridge", "all channels stay", "repaired layer after layer"),
        ("olmo2", {"intermediate_size": 64}, "ridge", "all channels stay", "repaired layer after layer"),
        ("cohere", {"intermediate_size": 64}, "ridge", "all channels stay", "repaired in one pass, not layer after"),
        ("mixtral", {"intermediate_size": 64}, "ridge", "all channels", "repaired layer after layer, experts in one"),
        ("llama", {"num_attention_heads": 2}, "ridge", "all channels stay", "repaired in one pass, not layer after"),
        ("mixtral", {"num_hidden_layers": 3}, "ridge", "all channels stay", "repaired layer after layer"),
    ],
)
def test_what_is_said_of_a_start_is_what_is_done(
    tmp_path: Path, model_type: str, shape: dict[str, int], repair: Repair, channels: str, repaired: str
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", model_type))
    taken = TakenStart.of(checkpoint, checkpoint.architecture.reshaped(shape), StartSettings("rotate", repair))
    assert taken.channels.startswith(channels)
    assert taken.repair.startswith(repaired)


def test_only_what_is_wanted_is_measured_and_kept(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", "llama", num_hidden_layers=2))
    assert measure_start(checkpoint, lambda: TOKENS, StartSettings("select", "none"), tmp_path) == (None, None)
    rotation, moments = measure_start(checkpoint, lambda: TOKENS, StartSettings("rotate", "none"), tmp_path)
    assert moments is None
    assert rotation is not None
    rotation, moments = measure_start(checkpoint, lambda: TOKENS, StartSettings("rotate", "ridge"), tmp_path)
    assert rotation is not None
    assert moments is not None
    names = ("mlp.down_proj", "self_attn.o_proj")
    assert set(TensorFolder(moments)) == {f"model.layers.{n}.{name}.weight" for n in range(2) for name in names}


def test_random_tokens_are_read_for_the_basis_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", "llama", num_hidden_layers=2))
    found, told = {}, []
    for share in (0.0, 0.5):
        work = tmp_path / f"{share}"
        monkeypatch.setattr(preparing, "RANDOM_TOKENS", share)
        start = StartSettings("rotate", "ridge")
        rotation, moments = measure_start(checkpoint, lambda: TOKENS, start, work, lambda *pair: told.append(pair))
        assert rotation is not None
        assert moments is not None
        found[share] = rotation.energies, dict(TensorFolder(moments))
    replaced = TOKENS.with_random_tokens(0.5, checkpoint.architecture.vocab_size)
    basis = StartSettings("rotate", "none")
    monkeypatch.setattr(preparing, "RANDOM_TOKENS", 0.0)
    expected, _ = measure_start(checkpoint, lambda: replaced, basis, tmp_path / "replaced")
    assert expected is not None
    assert torch.equal(found[0.5][0], expected.energies)
    assert not torch.allclose(found[0.5][0], found[0.0][0], rtol=1e-3)
    assert all(torch.equal(found[0.5][1][name], moment) for name, moment in found[0.0][1].items())
    half = told[: len(told) // 2]
    assert half == sorted(half)
    assert half[-1] == (2 * TOKENS.num_tokens, 2 * TOKENS.num_tokens)


def moments_in(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{kind}/{name}": moment
        for kind in ("norms", "projections")
        for name, moment in TensorFolder(folder / kind).items()
    }


@pytest.mark.parametrize("whole", [True, False])
def test_layers_that_are_measured_apart_give_what_one_pass_gives_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(preparing, "fits_in_memory", lambda *args: whole)
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", "qwen3_moe"))
    start = StartSettings("rotate", "ridge")
    keep_moments(checkpoint, lambda: TOKENS, start, tmp_path / "together", tmp_path)
    for layers in (range(3, 4), range(1), range(1, 3)):
        keep_moments(checkpoint, lambda: TOKENS, start, tmp_path / "apart", tmp_path, layers)
    together, apart = moments_in(tmp_path / "together"), moments_in(tmp_path / "apart")
    assert together.keys() == apart.keys()
    assert all(torch.equal(moment, apart[name]) for name, moment in together.items())
    assert "norms/model.norm.weight" in together


def test_only_moments_that_are_missing_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, start = (
        open_checkpoint(tiny_checkpoint(tmp_path / "teacher", "llama")),
        StartSettings("rotate", "ridge"),
    )
    keep_moments(checkpoint, lambda: TOKENS, start, tmp_path, tmp_path)
    expected = moments_in(tmp_path)
    lost = "model.layers.2.mlp.down_proj.weight"
    del TensorFolder(tmp_path / "projections")[lost]
    passes, measure = [], CalibrationPass.moments

    def watched(self: CalibrationPass, readers: Readers, kept: Any, progress: Progress, layers: set[int]) -> None:
        passes.append((readers, layers))
        measure(self, readers, kept, progress, layers)

    monkeypatch.setattr(CalibrationPass, "moments", watched)
    keep_moments(checkpoint, lambda: TOKENS, start, tmp_path, tmp_path)
    assert passes == [("projections", {2})]
    assert torch.equal(moments_in(tmp_path)[f"projections/{lost}"], expected[f"projections/{lost}"])
    keep_moments(checkpoint, lambda: 1 / 0, start, tmp_path, tmp_path)  # type: ignore[arg-type, return-value]
    assert len(passes) == 1


def test_moments_that_the_disk_cannot_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", "llama", num_hidden_layers=2))
    asked = []

    def refuse(folder: Path, num_bytes: int, what: str) -> None:
        asked.append(num_bytes)
        raise DiskSpaceError(what)

    monkeypatch.setattr(preparing, "require_free_bytes", refuse)
    with pytest.raises(DiskSpaceError, match="second moments"):
        measure_start(checkpoint, lambda: TOKENS, StartSettings("rotate", "ridge"), tmp_path)
    assert asked == [4 * (5 * 48**2 + 2 * 48**2 + 2 * 96**2)]
