import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals import folder as signal_folder
from minitron_nas.distillation.signals.targets import HiddenTargets
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.errors import CheckpointError, DataError, RunFolderError
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.steps import distill as distilling
from minitron_nas.pipeline.steps.distill import Distilled
from minitron_nas.pipeline.steps.evaluate import evaluate
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.testing import tiny_checkpoint, tiny_config, tiny_model, tiny_tokenizer
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.tokens import PackedTokens

TEXT = TextSettings(sequence_length=64, calibration_samples=16, validation_samples=8)
SETTINGS = DistillationSettings(
    tokens=2048, batch_sequences=4, micro_batch_sequences=4, learning_rate=2e-3, num_evaluations=1, checkpoint_minutes=0
)


@pytest.fixture(scope="module")
def student(trained_teacher: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained teacher without half of its neurons, unrepaired, so that training has something to do."""
    out, shape = tmp_path_factory.mktemp("pruned") / "student", {"intermediate_size": 48}
    return prune(trained_teacher, out, shape, data=text_file, text=TEXT, repair="none", display=Quiet()).path


@pytest.fixture
def distill(student: Path, trained_teacher: Path, text_file: Path) -> Callable[..., Distilled]:
    """Distil for eight steps; arguments replace the defaults."""

    def call(out: Path, **changes: Any) -> Distilled:
        arguments = {"student": student, "teacher": trained_teacher, "data": text_file, "settings": SETTINGS}
        return distilling.distill(**{"display": Quiet(), **arguments, **changes}, out=out, text=TEXT)

    return call


@pytest.fixture(scope="module")
def distilled(student: Path, trained_teacher: Path, text_file: Path, tmp_path_factory: Any) -> Distilled:
    out = tmp_path_factory.mktemp("distilled") / "student"
    return distilling.distill(student, trained_teacher, text_file, out, settings=SETTINGS, text=TEXT, display=Quiet())


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_student_comes_closer_to_the_teacher(distilled: Distilled, student: Path) -> None:
    assert distilled.result.final.kl_nats < 0.8 * distilled.before.kl_nats
    assert weights(distilled.path) != weights(student)


def test_the_student_given_stays_as_it_was(distilled: Distilled, student: Path) -> None:
    lineage = json.loads((distilled.path / "lineage.json").read_text())
    assert open_checkpoint(student).fingerprint == lineage["source"]["fingerprint"]


def test_the_result_is_a_stock_folder_with_proof_and_lineage(distilled: Distilled, student: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(distilled.path, trust_remote_code=False)
    assert model.config.intermediate_size == 48
    assert distilled.proof.max_abs_difference <= distilled.proof.tolerance
    lineage = json.loads((distilled.path / "lineage.json").read_text())
    assert (lineage["tokens_trained"], lineage["source"]["name"]) == (2048, student.name)


def test_the_gain_shows_on_other_text(
    distilled: Distilled, student: Path, trained_teacher: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("A function returns the value of an expression, and None if there is no expression. " * 5)
    before, after = (evaluate(f, file, trained_teacher, display=Quiet()) for f in (student, distilled.path))
    assert after.kl_nats < before.kl_nats


def test_nothing_is_left_beside_a_finished_student(distilled: Distilled) -> None:
    assert [path.name for path in distilled.path.parent.iterdir()] == ["student"]


def test_the_same_call_gives_the_same_bytes(
    distill: Callable[..., Distilled], distilled: Distilled, tmp_path: Path
) -> None:
    assert weights(distill(tmp_path / "out").path) == weights(distilled.path)


def test_a_student_and_its_work_lie_where_a_link_says(
    distill: Callable[..., Distilled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk" / "student").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "student")
    export, found = distilling.export_student, []

    def looked(*args: Any) -> Any:
        found.extend(path.name for path in tmp_path.rglob("*.work"))
        return export(*args)

    monkeypatch.setattr(distilling, "export_student", looked)
    distill(tmp_path / "link")
    assert found == ["student.work"]
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "student" / "model.safetensors").is_file()


def test_a_killed_call_goes_on_from_its_checkpoint_to_the_same_bytes(
    distill: Callable[..., Distilled], distilled: Distilled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def kill(*args: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(distilling, "export_student", kill)
        with pytest.raises(KilledError):
            distill(tmp_path / "out")
    (checkpoint,) = (tmp_path / "out.work").glob("checkpoints-*/checkpoint-*")
    assert checkpoint.name == "checkpoint-7"
    assert weights(distill(tmp_path / "out").path) == weights(distilled.path)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_sigterm_ends_the_command_with_143_and_the_same_bytes_come_out_later(
    distill: Callable[..., Distilled],
    distilled: Distilled,
    student: Path,
    trained_teacher: Path,
    text_file: Path,
    tmp_path: Path,
) -> None:
    settings = {f"text.{name}": value for name, value in TEXT.model_dump(exclude_defaults=True).items()}
    settings |= {f"distillation.{name}": value for name, value in SETTINGS.model_dump(exclude_defaults=True).items()}
    arguments = ["distill", str(student), "--teacher", str(trained_teacher), "--data", str(text_file)]
    arguments += ["--out", str(tmp_path / "out"), *(f"--set={name}={value}" for name, value in settings.items())]
    command = [sys.executable, "-c", _STOPPED_AT_STEP_3, *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 143, ended.stderr
    assert re.search(r"^minitron-nas: stopped by SIGTERM; .*checkpoint-3$", ended.stderr, re.MULTILINE)
    assert weights(distill(tmp_path / "out").path) == weights(distilled.path)


_STOPPED_AT_STEP_3 = """
import os, signal
from minitron_nas.__main__ import main
from minitron_nas.distillation.training.control import Control

on_step_end = Control.on_step_end


def stopping(self, args, state, control, **kwargs):
    if state.global_step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    on_step_end(self, args, state, control, **kwargs)


Control.on_step_end = stopping
main()
"""


def test_a_killed_call_with_other_arguments_leaves_nothing_to_go_on_from(
    distill: Callable[..., Distilled],
    distilled: Distilled,
    trained_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kill(*args: Any) -> None:
        raise KeyboardInterrupt

    other_teacher = tiny_checkpoint(tmp_path / "other", "llama", tied=True, hidden_size=36)
    for changes in ({"teacher": other_teacher}, {"student": trained_teacher}):
        with monkeypatch.context() as patch:
            patch.setattr(distilling, "export_student", kill)
            with pytest.raises(KeyboardInterrupt):
                distill(tmp_path / "out", **changes)
    assert weights(distill(tmp_path / "out").path) == weights(distilled.path)


def test_a_call_that_is_killed_while_the_teacher_speaks_goes_on_at_the_shard_that_it_had_reached(
    distill: Callable[..., Distilled], distilled: Distilled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken: list[int] = []
    speak = OnlineTeacher.targets

    def counted(self: OnlineTeacher, indices: Tensor, tokens: PackedTokens) -> HiddenTargets:
        spoken.append(tokens.num_sequences)
        if kill and sum(spoken) > 20:
            raise KeyboardInterrupt
        return speak(self, indices, tokens)

    monkeypatch.setattr(OnlineTeacher, "targets", counted)
    monkeypatch.setattr(signal_folder, "_SHARD_BYTES", 1)  # as large as a batch
    kill = True
    with pytest.raises(KeyboardInterrupt):
        distill(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    kill, before = False, sum(spoken[:-1])
    spoken.clear()
    assert weights(distill(tmp_path / "out").path) == weights(distilled.path)
    assert before + sum(spoken) == 32 + 8  # training and validation sequences


@pytest.mark.parametrize("signal", [pytest.param("hidden_cache", marks=pytest.mark.slow), "top_k"])
def test_students_that_learn_the_same_text_share_what_the_teacher_says(
    distill: Callable[..., Distilled],
    distilled: Distilled,
    trained_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signal: str,
) -> None:
    settings, said = SETTINGS.model_copy(update={"teacher_signal": signal}), tmp_path / "said"
    first = distill(tmp_path / "one", settings=settings, signals=said)
    assert first.result.final.kl_nats == pytest.approx(distilled.result.final.kl_nats, rel=1e-2)

    def speak(*_: Any) -> None:
        raise AssertionError("the teacher spoke again")

    monkeypatch.setattr(OnlineTeacher, "targets", speak)
    distill(tmp_path / "two", student=first.path, settings=settings, signals=said)
    kept = sorted(path.name.rsplit("-", 2)[0] for path in said.iterdir())
    assert kept == {"hidden_cache": ["hidden", "hidden"], "top_k": ["hidden", "top-256"]}[signal]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "said", "two"]


def test_a_teacher_that_is_larger_than_the_device_is_told_of_and_teaches_the_same(
    distill: Callable[..., Distilled], distilled: Distilled, tmp_path: Path, little_memory: None, told: Any
) -> None:
    spread = distill(tmp_path / "out", display=told)
    assert [note for note in told.notes if note.startswith("teacher: the model is larger than the memory that")]
    assert weights(spread.path) == weights(distilled.path)


def test_a_teacher_beside_the_student_teaches_as_well_as_its_cache(
    distill: Callable[..., Distilled], distilled: Distilled, tmp_path: Path
) -> None:
    online = distill(tmp_path / "out", settings=SETTINGS.model_copy(update={"teacher_signal": "online"}))
    assert online.before == distilled.before
    assert online.result.final.kl_nats == pytest.approx(distilled.result.final.kl_nats, rel=1e-3)


def test_another_tokenizer_is_refused_with_both_names(
    distill: Callable[..., Distilled], trained_teacher: Path, tmp_path: Path
) -> None:
    other = tiny_checkpoint(tmp_path / "other", "llama", vocab_size=300)
    message = (
        rf"the student 'other' \(300 tokens\) and the teacher '{trained_teacher.name}' \(320 tokens\) have different"
    )
    with pytest.raises(CheckpointError, match=message):
        distill(tmp_path / "out", student=other)
    assert not list(tmp_path.glob("out*"))
    (tmp_path / "out.work").mkdir()  # what a stopped command goes on from
    with pytest.raises(CheckpointError, match=message):
        distill(tmp_path / "out", student=other)
    assert (tmp_path / "out.work").exists()


def test_a_vocabulary_with_more_padding_is_cut_to_the_common_one(
    distill: Callable[..., Distilled], tmp_path: Path
) -> None:
    padded = tmp_path / "padded"
    model = tiny_model(tiny_config("llama", vocab_size=328))
    model.save_pretrained(padded)
    tiny_tokenizer(320).save_pretrained(padded)
    result = distill(tmp_path / "out", student=padded)
    assert result.result.final.kl_nats < result.before.kl_nats
    trained = AutoModelForCausalLM.from_pretrained(result.path).get_output_embeddings().weight
    before = model.get_output_embeddings().weight
    assert torch.equal(trained[320:], before[320:])  # padding learns nothing
    assert not torch.equal(trained[:320], before[:320])


def test_conventional_retraining_asks_the_teacher_about_validation_only(
    distill: Callable[..., Distilled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken: list[int] = []
    speak = OnlineTeacher.targets

    def counted(self: OnlineTeacher, indices: Tensor, tokens: PackedTokens) -> HiddenTargets:
        spoken.append(tokens.num_sequences)
        return speak(self, indices, tokens)

    monkeypatch.setattr(OnlineTeacher, "targets", counted)
    result = distill(tmp_path / "out", settings=SETTINGS.model_copy(update={"loss": "lm", "learning_rate": 3e-4}))
    assert sum(spoken) == TEXT.validation_samples
    assert result.result.final.loss_nats is not None
    assert result.result.final.loss_nats < result.before.loss_nats


def test_a_training_that_harms_leaves_the_student_as_it_was_and_says_so(
    distill: Callable[..., Distilled], student: Path, tmp_path: Path, told: Any
) -> None:
    harming = SETTINGS.model_copy(update={"learning_rate": 1.0})
    result = distill(tmp_path / "out", settings=harming, display=told)
    stored, before = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (result.path, student))
    assert [name for name, weight in stored.items() if not torch.equal(weight, before[name])] == []
    assert json.loads((result.path / "lineage.json").read_text())["exported_tokens"] == 0
    assert result.result.harm in told.notes


AUTO = SETTINGS.model_copy(update={"learning_rate": "auto"})


def test_a_learning_rate_is_looked_for_and_stands_in_the_lineage(
    distill: Callable[..., Distilled], tmp_path: Path, told: Any
) -> None:
    result = distill(tmp_path / "out", settings=AUTO.model_copy(update={"tokens": 10_240}), display=told)
    (words,) = [note for note in told.notes if "learning rate" in note]
    rates = dict(part.split() for part in words.partition("each: ")[2].split(", "))
    chosen = json.loads((result.path / "lineage.json").read_text())["learning_rate"]
    assert {"0.0001", "0.0003", "0.001"} <= set(rates)
    assert words.startswith(f"learning rate {chosen:g}; KL in nats after 256 tokens at each: ")
    assert float(rates[f"{chosen:g}"]) == min(map(float, rates.values()))
    assert not (tmp_path / "out.work").exists()


def test_few_tokens_are_distilled_at_the_default_rate_and_it_is_said(
    distill: Callable[..., Distilled], tmp_path: Path, told: Any
) -> None:
    result = distill(tmp_path / "out", settings=AUTO, display=told)
    assert json.loads((result.path / "lineage.json").read_text())["learning_rate"] == 1e-4
    assert any("no learning rate is looked for: a fortieth of 2,048 tokens" in note for note in told.notes)


def test_text_that_is_missing_is_refused_before_any_work(distill: Callable[..., Distilled], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file matches"):
        distill(tmp_path / "out", data=tmp_path / "nowhere.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_never_replaced(distill: Callable[..., Distilled], tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("mine")
    with pytest.raises(RunFolderError, match=r"exists and is not empty; choose an empty or new --out"):
        distill(tmp_path)
    assert (tmp_path / "plan.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    "damage", ["flipped", *(pytest.param(each, marks=pytest.mark.slow) for each in ("cut short", "gone"))]
)
def test_tokens_that_changed_after_a_call_was_killed_are_read_anew(
    distill: Callable[..., Distilled], distilled: Distilled, tmp_path: Path, damage: str
) -> None:
    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(distilling, "run_training", kill)
        distill(tmp_path / "out")
    (tokens,) = (tmp_path / "out.work").glob("tokens-*/train.safetensors")
    content = tokens.read_bytes()
    tokens.unlink()
    if damage != "gone":
        changed = content[:4096] + bytes([content[4096] ^ 1]) + content[4097:]
        tokens.write_bytes(changed if damage == "flipped" else content[:-1])
    assert weights(distill(tmp_path / "out").path) == weights(distilled.path)
