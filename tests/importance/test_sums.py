"""Scores that are added up from shards of their text, whoever has measured them."""

import os
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from minitron_nas.distillation.signals.folder import WHOLE, Share
from minitron_nas.errors import DiskSpaceError
from minitron_nas.importance import passes
from minitron_nas.importance.passes import CalibrationPass
from minitron_nas.importance.score import score_importance
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.importance.sums import SumsFolder, added, num_scores, scores_of, sums_bytes, text_shards
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.models.loading import load_whole
from minitron_nas.progress import silent
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.packing import pack

IDS = torch.randint(0, 320, (75 * 12,), generator=torch.Generator().manual_seed(0)).numpy()
TEXT = pack([IDS], 12)
"""Of ten shards, the last of three sequences."""

SETTINGS = ImportanceSettings()


@pytest.fixture(scope="module", params=["llama", "qwen3_moe"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint(tmp_path_factory.mktemp("teacher"), request.param, num_hidden_layers=2))


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("importance.layered_model", "models.loading"):
        monkeypatch.setattr(f"minitron_nas.{place}.compute_dtype", lambda device: torch.float32)


def scores_in(kept: SumsFolder, checkpoint: Checkpoint) -> ImportanceScores:
    return scores_of(kept.total(), checkpoint.architecture, checkpoint.layout, SETTINGS)


def assert_equal(one: ImportanceScores, other: ImportanceScores) -> None:
    assert all(torch.equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))


def test_a_text_has_at_most_sixteen_shards_of_whole_batches() -> None:
    assert text_shards(256) == [range(start, start + 16) for start in range(0, 256, 16)]
    assert text_shards(7) == [range(4), range(4, 7)]
    for num_sequences in (1, 63, 64, 65, 1000):
        shards = text_shards(num_sequences)
        assert [index for shard in shards for index in shard] == list(range(num_sequences))
        assert len(shards) <= 16
        assert all(len(shard) % 4 == 0 for shard in shards[:-1])


def test_sums_are_added_in_the_order_of_the_shards() -> None:
    one = torch.ones(3, 1, dtype=torch.float64)
    first = torch.tensor([[1e16], [1.0], [0.0]], dtype=torch.float64)
    parts = [{"a": first}, {"a": one}, {"a": one, "b": torch.ones(3, 2, dtype=torch.float64)}]
    total = added(parts)
    assert total["a"].flatten().tolist() == [1e16 + 1 + 1, 3, 2]  # 1 + 1 first would leave another number
    assert 1e16 + 1 + 1 != 1e16 + (1 + 1)
    assert total["b"].tolist() == [[1, 1]] * 3


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_scores_are_the_same_however_many_have_measured_them(
    checkpoint: Checkpoint, tmp_path: Path, whole: bool, count: int
) -> None:
    along, kept = CalibrationPass(checkpoint, TEXT, whole, tmp_path), SumsFolder(tmp_path / "sums", TEXT)
    for number in reversed(range(count)):
        along.sum_up(SETTINGS, kept, Share(number, count), silent)
    assert kept.missing() == []
    model = load_whole(checkpoint.path)
    live = score_importance(model, checkpoint.architecture, checkpoint.layout, TEXT, SETTINGS)
    assert_equal(scores_in(kept, checkpoint), live)
    assert_equal(along.score(SETTINGS, silent), live)
    assert [path.name for path in tmp_path.iterdir()] == ["sums"]


@pytest.mark.parametrize("whole", [True, False])
def test_only_shards_that_are_missing_are_measured(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    along, kept = CalibrationPass(checkpoint, TEXT, whole, tmp_path), SumsFolder(tmp_path, TEXT)
    along.sum_up(SETTINGS, kept, WHOLE, silent)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for name in ("02.safetensors", "07.safetensors", "09.safetensors"):
        (tmp_path / name).unlink()
    os.truncate(tmp_path / "04.safetensors", len(files["04.safetensors"]) // 2)
    told: list[tuple[int, int]] = []
    along.sum_up(SETTINGS, kept, WHOLE, lambda *pair: told.append(pair))
    passes_of_text = 1 if whole else 2  # one for every layer
    assert told[-1] == (passes_of_text * (19 + 8) * 12,) * 2
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
    monkeypatch.setattr(passes, "load_whole", None)
    monkeypatch.setattr(passes, "sweep_sums", None)
    along.sum_up(SETTINGS, kept, WHOLE, silent)


def test_what_was_measured_before_a_kill_stays(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    along, kept = CalibrationPass(checkpoint, TEXT, True, tmp_path), SumsFolder(tmp_path, TEXT)
    done: list[int] = []

    def killing(before: int, total: int) -> None:
        done.append(before)
        if before > 2 * 8 * 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        along.sum_up(SETTINGS, kept, WHOLE, killing)
    assert kept.missing() == list(range(2, 10))


@pytest.mark.parametrize(
    "model_type", ["llama", "gpt_neox", "mixtral", "qwen2_moe", "glm4_moe", "qwen3_next", "lfm2", "falcon_h1"]
)
def test_what_scores_and_their_sums_take_is_known_before(tmp_path: Path, model_type: str) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", model_type))
    architecture, layout = checkpoint.architecture, checkpoint.layout
    kept = SumsFolder(tmp_path / "sums", TEXT)
    CalibrationPass(checkpoint, TEXT, whole=True, folder=tmp_path).sum_up(SETTINGS, kept, WHOLE, silent)
    scores = scores_in(kept, checkpoint)
    assert num_scores(architecture, layout) == sum(getattr(scores, field.name).numel() for field in fields(scores))
    taken, most = sum(sums.nbytes for sums in kept.total().values()), sums_bytes(architecture, layout)
    assert taken <= most if architecture.layer_kinds else taken == most


def test_sums_that_the_disk_cannot_hold_are_not_begun(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, needed = SumsFolder(tmp_path, TEXT), 10 * sums_bytes(checkpoint.architecture, checkpoint.layout)
    monkeypatch.setattr("minitron_nas.storage.atomic.free_bytes", lambda _: needed - 1)
    with pytest.raises(DiskSpaceError, match="what scores are made of needs "):
        CalibrationPass(checkpoint, TEXT, whole=True, folder=tmp_path).sum_up(SETTINGS, kept, WHOLE, silent)
    monkeypatch.setattr("minitron_nas.storage.atomic.free_bytes", lambda _: needed)
    CalibrationPass(checkpoint, TEXT, whole=True, folder=tmp_path).sum_up(SETTINGS, kept, WHOLE, silent)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == pytest.approx(needed, rel=0.2)  # with headers
