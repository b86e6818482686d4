"""Which signal a part of the text gets, that its cache is written once, and what opening gives."""

import functools

import numpy as np
import pytest
import torch

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.caches import cached_parts, keep_signal, keep_signals, open_signal
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import HiddenCache
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.distillation.signals.top_k_cache import TopKCache
from minitron_nas.errors import CacheError
from minitron_nas.models.loading import load_stock
from minitron_nas.testing import tiny_checkpoint, tiny_config, tiny_model
from minitron_nas.text.packing import pack


def some_tokens(num_sequences, seed=7):
    generator = np.random.default_rng(seed)
    pieces = [generator.integers(3, 320, size=generator.integers(3, 24)) for _ in range(2 * num_sequences + 4)]
    return pack(pieces, 16).first(num_sequences)


class Teacher:
    """A tiny model that counts how often it is loaded."""

    def __init__(self):
        self.times = 0

    def load(self, path=None):
        self.times += 1
        return tiny_model(tiny_config("llama"))


@pytest.mark.parametrize(
    ("signal", "parts"),
    [
        ("online", {"validation": None}),
        ("hidden_cache", {"validation": None, "train": None}),
        ("top_k", {"validation": None, "train": 200}),
    ],
)
def test_validation_always_has_hidden_states(signal, parts):
    assert cached_parts(DistillationSettings(teacher_signal=signal, top_k=200)) == parts


@pytest.mark.parametrize("top_k", [None, 9, 1000])
def test_a_cache_that_is_whole_loads_no_teacher(tmp_path, top_k):
    teacher, tokens, seen = Teacher(), some_tokens(3), []
    place = SignalPlace(tmp_path, "teacher", tokens)
    for _ in range(2):
        keep_signal(top_k, teacher.load, place, lambda done, total: seen.append((done, total)))
    assert teacher.times == 1
    assert seen == [(48, 48), (48, 48)]
    kind = HiddenCache if top_k is None else TopKCache
    assert type(open_signal(tmp_path / "nowhere", "teacher", tokens, tmp_path)) is kind


@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": None},
        {"top_k": 10},
        {"fingerprint": "other"},
        {"tokens": some_tokens(3, seed=8)},
        {"remove": "00000.shard"},
        {"remove": "about.json"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_cache_of_something_else_or_with_a_hole_is_written_again(tmp_path, changes):
    teacher, tokens = Teacher(), some_tokens(3)
    keep_signal(9, teacher.load, SignalPlace(tmp_path, "teacher", tokens))
    if "remove" in changes:
        (tmp_path / changes["remove"]).unlink()
    wanted = {"top_k": 9, "fingerprint": "teacher", "tokens": tokens, **changes}
    keep_signal(wanted["top_k"], teacher.load, SignalPlace(tmp_path, wanted["fingerprint"], wanted["tokens"]))
    assert teacher.times == 2
    open_signal(tmp_path / "nowhere", wanted["fingerprint"], wanted["tokens"], tmp_path)


def test_several_parts_are_written_with_one_teacher_and_one_progress(tmp_path):
    teacher, seen = Teacher(), []
    load = functools.cache(teacher.load)
    texts = {"validation": some_tokens(2), "train": some_tokens(5, seed=8)}
    paths = {name: tmp_path / name for name in texts}
    for _ in range(2):
        parts = {"validation": None, "train": 9}
        keep_signals(load, "teacher", parts, texts, paths, lambda done, total: seen.append((done, total)))
    assert teacher.times == 1
    assert seen == [(32, 112), (96, 112), (112, 112), (32, 112), (112, 112)]
    assert isinstance(open_signal(tmp_path, "teacher", texts["validation"], paths["validation"]), HiddenCache)
    assert isinstance(open_signal(tmp_path, "teacher", texts["train"], paths["train"]), TopKCache)


def test_without_a_cache_the_teacher_itself_speaks(tmp_path, monkeypatch):
    monkeypatch.setattr("minitron_nas.models.loading.compute_dtype", lambda device: torch.float32)
    monkeypatch.setattr("minitron_nas.models.loading.pick_device", lambda: torch.device("cpu"))
    folder, tokens = tiny_checkpoint(tmp_path / "teacher", "llama"), some_tokens(2)
    online = open_signal(folder, "teacher", tokens, None)
    assert isinstance(online, OnlineTeacher)
    keep_signal(None, lambda: load_stock(folder, torch.float32), SignalPlace(tmp_path / "cache", "teacher", tokens))
    cached = open_signal(folder, "teacher", tokens, tmp_path / "cache")
    said = [signal.targets(torch.arange(2), tokens).hidden.cpu() for signal in (cached, online)]
    assert torch.equal(*said)


def test_a_folder_without_a_cache_is_refused(tmp_path):
    with pytest.raises(CacheError, match="holds no cache"):
        open_signal(tmp_path, "teacher", some_tokens(2), tmp_path)
