"""The stage in which the teacher speaks once: what it leaves, and what it does when it is repeated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron_nas.distillation.job import TrainingFiles
from minitron_nas.distillation.signals import caches
from minitron_nas.distillation.signals import folder as signal_folder
from minitron_nas.distillation.signals.hidden_cache import HiddenCache
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.distillation.signals.top_k_cache import TopKCache
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.engine import Engine, Left, Stage
from minitron_nas.pipeline.hop import Lessons
from minitron_nas.pipeline.plan import make_plan, with_overrides
from minitron_nas.pipeline.run import Run, RunTokens, Source
from minitron_nas.pipeline.stages.teach import let_speak
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.tokens import PackedTokens

Speak = Callable[..., TrainingFiles]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint(tmp_path_factory.mktemp("model"), "llama"))


def some_tokens(num_sequences: int, seed: int) -> PackedTokens:
    ids = torch.randint(3, 320, (num_sequences, 16), generator=torch.Generator().manual_seed(seed))
    return PackedTokens(ids, torch.arange(16).expand(num_sequences, -1).contiguous())


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The teachers that were loaded."""
    loaded, load = [], caches.load_for_inference

    def watched(path: Path) -> Any:
        loaded.append(path)
        return load(path)

    monkeypatch.setattr(caches, "load_for_inference", watched)
    return loaded


@pytest.fixture
def lessons(teacher: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lessons]:
    """Run the stage in one run folder, over twelve sequences of training and four of validation text."""
    monkeypatch.setattr(signal_folder, "_SHARD_BYTES", 1)  # a shard of each batch of four
    parts = {name: some_tokens(count, seed=count) for name, count in (("calibration", 2), ("validation", 4))}

    def call(*overrides: str, seed: int = 9) -> Lessons:
        train = some_tokens(12, seed)
        for name, part in {**parts, "train": train}.items():
            part.save(tmp_path / "tokens" / f"{name}.safetensors")
        settled = ("distillation.teacher_signal=hidden_cache", *overrides)
        plan = make_plan(with_overrides({"teacher": "x", "sizes": [1], "data": "x"}, settled))
        engine, source = Engine(RunFolder(tmp_path), Quiet()), Source("teacher", teacher)
        text = engine.run(Stage("text", "tokens", {"seed": seed}), lambda progress: Left(seed))
        run = Run(engine, plan, source, RunTokens(tmp_path / "tokens", text, train.num_tokens))
        return let_speak(run, source)

    return call


@pytest.fixture
def speak(lessons: Callable[..., Lessons]) -> Speak:
    """The same, for what students learn from."""
    return lambda *overrides, **seed: lessons(*overrides, **seed).files


@pytest.mark.parametrize(
    ("signal", "kind"), [("hidden_cache", HiddenCache), ("top_k", TopKCache), ("online", OnlineTeacher)]
)
def test_training_gets_the_signal_of_the_plan_and_validation_hidden_states(
    speak: Speak, teacher: Checkpoint, tmp_path: Path, signal: str, kind: type
) -> None:
    train, validation = speak(f"distillation.teacher_signal={signal}").streams()
    assert (type(train.signal), type(validation.signal)) == (kind, HiddenCache)
    assert (train.tokens.num_sequences, validation.tokens.num_sequences) == (12, 4)
    folders = {"online": ["trials", "validation"], "top_k": ["train", "trials", "validation"]}.get(
        signal, ["train", "validation"]
    )
    assert sorted(path.name for path in (tmp_path / "signals" / teacher.fingerprint).iterdir()) == folders


@pytest.mark.parametrize("signal", ["hidden_cache", "top_k", "online"])
def test_trials_learn_the_same_text_from_a_cache_whatever_students_learn_from(
    lessons: Callable[..., Lessons], signal: str
) -> None:
    found = lessons(f"distillation.teacher_signal={signal}", "search.tokens=128", "distillation.batch_sequences=2")
    whole, short = found.files.train.open(), found.trials.streams()[0]
    assert isinstance(short.signal, HiddenCache)
    if signal == "hidden_cache":
        assert found.trials == found.files
    else:
        num = short.tokens.num_sequences
        assert 0 < num < whole.num_sequences
        assert torch.equal(short.tokens.input_ids, whole.input_ids[:num])


def test_where_nothing_is_tried_or_inner_states_are_matched_trials_get_no_cache(
    lessons: Callable[..., Lessons],
) -> None:
    for rate in ("distillation.learning_rate=1e-4", "distillation.tokens=512"):  # of so few none is looked for
        untried = lessons("distillation.teacher_signal=online", "search.num_rungs=0", rate)
        assert untried.trials == untried.files
    matched = lessons("distillation.teacher_signal=online", "distillation.intermediate=always")
    assert matched.trials == matched.files


def test_the_teacher_is_loaded_once_for_all_parts_and_not_again_when_the_run_goes_on(
    speak: Speak, loads: list[Path]
) -> None:
    assert speak() == speak()
    assert len(loads) == 1


def test_a_killed_stage_goes_on_at_the_shard_that_it_had_reached(
    speak: Speak, teacher: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken: list[list[int]] = []
    say = OnlineTeacher.targets

    def dying(self: OnlineTeacher, indices: torch.Tensor, tokens: PackedTokens) -> Any:
        if len(spoken) == 3:
            raise KeyboardInterrupt
        spoken.append(indices.tolist())
        return say(self, indices, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(OnlineTeacher, "targets", dying)
        with pytest.raises(KeyboardInterrupt):
            speak()
        assert spoken == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
        spoken[:] = []
        speak()
    assert spoken == [[8, 9, 10, 11]]


def test_a_shard_that_was_deleted_is_written_again(
    speak: Speak, teacher: Checkpoint, tmp_path: Path, loads: list[Path]
) -> None:
    files = speak()
    assert files.train.cache is not None
    shard = files.train.cache / "00001.shard"
    good = shard.read_bytes()
    shard.unlink()
    assert speak() == files
    assert shard.read_bytes() == good
    assert len(loads) == 2


def test_when_the_text_has_changed_the_teacher_speaks_again(speak: Speak, loads: list[Path]) -> None:
    speak()
    speak(seed=10).streams()
    assert len(loads) == 2
