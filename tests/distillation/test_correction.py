"""A teacher that follows its correction speaks with the newest weights that are whole."""

import pytest
import torch

from minitron_nas.distillation import correction
from minitron_nas.distillation.correction import Correction, FollowingTeacher
from minitron_nas.distillation.job import StreamFiles, TrainingFiles
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import write_hidden_cache
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.distillation.training.checkpoints import mark_whole, save_weights
from minitron_nas.distillation.training.objective import Objective
from minitron_nas.errors import CheckpointError, PlanError
from minitron_nas.models import placement
from minitron_nas.models.loading import load_whole
from minitron_nas.storage.atomic import write_json
from minitron_nas.testing import tiny_checkpoint, tiny_config, tiny_model
from minitron_nas.text.tokens import PackedTokens

TOKENS = PackedTokens(torch.arange(32).view(2, 16), torch.arange(16).expand(2, 16))
ONLINE = DistillationSettings(teacher_signal="online")


def model_of(seed):
    return tiny_model(tiny_config("llama"), seed=seed)


def words(teacher):
    return teacher.targets(torch.arange(2), TOKENS).hidden


@pytest.fixture
def save(tmp_path):
    """Save the weights of a seed as a correction does, marked as whole or not."""

    def save(step, seed, whole=True):
        checkpoint = Correction(tmp_path / "out").checkpoints("print") / "full" / f"checkpoint-{step}"
        objective = Objective(model_of(seed), DistillationSettings(loss="lm"), None)
        save_weights(checkpoint / "model.safetensors", objective, True)
        if whole:
            mark_whole(checkpoint, "identity")
        return checkpoint

    return save


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(correction, "_LOOK_SECONDS", 0.0)
    return FollowingTeacher(model_of(1), "print", Correction(tmp_path / "out"))


def test_the_newest_whole_checkpoint_speaks_and_in_the_end_the_corrected_teacher(teacher, save, tmp_path):
    heard = [words(teacher)]
    save(1, seed=2)
    heard.append(words(teacher))
    save(10, seed=3)
    save(11, seed=4, whole=False)
    heard.append(words(teacher))
    tiny_checkpoint(tmp_path / "out", "llama", seed=5)
    heard.append(words(teacher))
    for got, seed in zip(heard, (1, 2, 3, 5), strict=True):
        assert torch.equal(got, words(OnlineTeacher(model_of(seed))))


def test_a_teacher_that_follows_is_loaded_whole_where_others_are_spread(tmp_path, monkeypatch):
    folder, text = tiny_checkpoint(tmp_path / "teacher", "llama"), tmp_path / "text.safetensors"
    TOKENS.save(text)
    write_hidden_cache(load_whole(folder), SignalPlace(tmp_path / "cache", "print", TOKENS))
    files = TrainingFiles(
        folder, "print", StreamFiles(text), StreamFiles(text, tmp_path / "cache"), correction=tmp_path / "out"
    )
    monkeypatch.setattr(placement, "_rooms", lambda: [("cpu", 1000)])
    assert placement.find_places(folder) is not None
    train, _ = files.streams()
    assert isinstance(train.signal, FollowingTeacher)
    assert not any(parameter.is_meta for parameter in train.signal.model.parameters())


def test_the_head_is_that_of_the_same_weights(teacher, save):
    save(1, seed=2)
    targets = teacher.targets(torch.arange(2), TOKENS)
    assert torch.equal(targets.head.weight, model_of(2).get_output_embeddings().weight)


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_passed_over(teacher, save, monkeypatch):
    first, load_weights = save(1, seed=2), correction.load_weights

    def replaced(folder, module):
        if folder == first:
            save(2, seed=3)
        load_weights(folder, module)

    monkeypatch.setattr(correction, "load_weights", replaced)
    assert torch.equal(words(teacher), words(OnlineTeacher(model_of(1))))
    assert torch.equal(words(teacher), words(OnlineTeacher(model_of(3))))


@pytest.mark.parametrize("damage", ["flipped", "cut short", "gone"])
def test_a_damaged_checkpoint_is_named(teacher, save, damage):
    file = save(1, seed=2) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage == "flipped" else content[:-1])
    if damage == "gone":
        file.unlink()
    with pytest.raises(
        CheckpointError, match=r"checkpoint-1/model\.safetensors cannot be used: .*; check the disk, del"
    ):
        words(teacher)


@pytest.mark.parametrize("damage", ["cut short", "gone"])
def test_a_damaged_corrected_teacher_is_named(teacher, tmp_path, damage):
    file = tiny_checkpoint(tmp_path / "out", "llama", seed=5) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    if damage == "gone":
        file.unlink()
    with pytest.raises(CheckpointError, match=r"out cannot be read \(.*\); delete it and correct the teacher again"):
        words(teacher)


def test_it_looks_for_newer_weights_now_and_then_only(teacher, save, monkeypatch):
    words(teacher)
    monkeypatch.setattr(correction, "_LOOK_SECONDS", 3600.0)
    save(1, seed=2)
    assert torch.equal(words(teacher), words(OnlineTeacher(model_of(1))))


def test_another_teachers_correction_is_not_followed(save, tmp_path, monkeypatch):
    monkeypatch.setattr(correction, "_LOOK_SECONDS", 0.0)
    save(1, seed=2)
    teacher = FollowingTeacher(model_of(1), "another print", Correction(tmp_path / "out"))
    assert torch.equal(words(teacher), words(OnlineTeacher(model_of(1))))


def test_another_teachers_correction_is_refused_under_way_and_done(save, tmp_path):
    Correction(tmp_path / "out").require_of("another")  # a correction that still reads its text
    save(1, seed=2)
    Correction(tmp_path / "out").require_of("print")
    message = r"out holds the correction of another teacher \(print\), and the student learns from another; name"
    with pytest.raises(PlanError, match=message):
        Correction(tmp_path / "out").require_of("another")
    tiny_checkpoint(tmp_path / "out", "llama", seed=5)
    with pytest.raises(PlanError, match="out holds no corrected teacher"):
        Correction(tmp_path / "out").require_of("print")
    write_json(tmp_path / "out" / "lineage.json", {"corrected": {"source": "x", "fingerprint": "print"}})
    Correction(tmp_path / "out").require_of("print")
    with pytest.raises(PlanError, match=message):
        Correction(tmp_path / "out").require_of("another")


def test_a_cached_teacher_cannot_follow(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(PlanError, match="set distillation.teacher_signal=online"):
        Correction(tmp_path / "out").require_usable(DistillationSettings())
    Correction(tmp_path / "out").require_usable(ONLINE)


def test_a_folder_that_nothing_corrects_in_is_refused(tmp_path):
    with pytest.raises(PlanError, match="nothing corrects a teacher in"):
        Correction(tmp_path / "out").require_usable(ONLINE)
    (tmp_path / "out.work").mkdir()
    Correction(tmp_path / "out").require_usable(ONLINE)
