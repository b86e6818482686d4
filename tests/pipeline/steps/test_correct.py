import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_nas.distillation.settings import CorrectionSettings, DistillationSettings
from minitron_nas.errors import DataError, PlanError, RunFolderError
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.stages.correct import correction_tokens
from minitron_nas.pipeline.steps import correct as correcting
from minitron_nas.pipeline.steps.correct import Corrected, correction_schedule
from minitron_nas.pipeline.steps.distill import distill
from minitron_nas.pipeline.steps.evaluate import evaluate
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.text.settings import TextSettings

TEXT = TextSettings(sequence_length=64, calibration_samples=16, validation_samples=8)
SETTINGS = CorrectionSettings(
    tokens=2048, batch_sequences=4, micro_batch_sequences=4, learning_rate=2e-3, warmup_steps=2
)


LORA = SETTINGS.model_copy(update={"weights": "lora", "lora_rank": 4, "learning_rate": 1e-2})


@pytest.fixture(scope="module")
def other_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of another kind than what the trained teacher has read."""
    file = tmp_path_factory.mktemp("text") / "records.jsonl"
    records = [f'{{"id": {n}, "name": "record {n}", "next": {n + 1}, "size": {n * n % 97}}}\n' for n in range(1500)]
    documents = ("".join(records[start : start + 4]) for start in range(0, len(records), 4))
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return file


@pytest.fixture(scope="module")
def correct(trained_teacher: Path, other_text: Path) -> Callable[..., Corrected]:
    """Correct the trained teacher for eight steps; arguments replace the defaults."""

    def call(out: Path, **changes: Any) -> Corrected:
        arguments = {"teacher": trained_teacher, "data": other_text, "settings": SETTINGS}
        return correcting.correct(**{**arguments, **changes}, out=out, text=TEXT, display=Quiet())

    return call


@pytest.fixture(scope="module")
def corrected(correct: Callable[..., Corrected], tmp_path_factory: pytest.TempPathFactory) -> Corrected:
    return correct(tmp_path_factory.mktemp("corrected") / "teacher")


@pytest.fixture(scope="module")
def adapted(correct: Callable[..., Corrected], tmp_path_factory: pytest.TempPathFactory) -> Corrected:
    return correct(tmp_path_factory.mktemp("adapted") / "teacher", settings=LORA)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_corrected_teacher_is_better_on_held_out_text(corrected: Corrected) -> None:
    assert corrected.after.loss_nats < corrected.before.loss_nats - 0.1
    assert corrected.result.final.loss_nats == pytest.approx(corrected.after.loss_nats, rel=1e-3)


def test_the_result_is_a_stock_folder_of_the_same_shape_with_proof_and_lineage(
    corrected: Corrected, trained_teacher: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(corrected.path, trust_remote_code=False)
    given = open_checkpoint(trained_teacher)
    assert open_checkpoint(corrected.path).architecture == given.architecture
    assert model.dtype == torch.float32
    assert corrected.proof.max_abs_difference <= corrected.proof.tolerance
    lineage = json.loads((corrected.path / "lineage.json").read_text())
    assert lineage["corrected"]["fingerprint"] == given.fingerprint
    assert lineage["tokens_trained"] == 2048
    assert lineage["settings"]["learning_rate"] == 2e-3
    assert lineage["validation_loss_nats"]["after"] == corrected.after.loss_nats


def test_the_gain_shows_in_evaluate_on_other_text_of_the_kind(
    corrected: Corrected, trained_teacher: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(
        "".join(f'{{"id": {n}, "name": "record {n}", "next": {n + 1}, "size": 7}}\n' for n in range(2000, 2030))
    )
    before, after = (evaluate(folder, file, display=Quiet()) for folder in (trained_teacher, corrected.path))
    assert after.loss_nats < before.loss_nats - 0.1


def test_nothing_is_left_beside_a_corrected_teacher(corrected: Corrected) -> None:
    assert [path.name for path in corrected.path.parent.iterdir()] == ["teacher"]


def test_lora_trains_less_and_is_merged_into_a_stock_folder(adapted: Corrected, trained_teacher: Path) -> None:
    assert adapted.after.loss_nats < adapted.before.loss_nats - 0.1
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (trained_teacher, adapted.path)]
    before, after = (model.state_dict() for model in models)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    difference = (after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]).double()
    assert torch.linalg.matrix_rank(difference, atol=1e-5) == 4


def test_activations_that_are_computed_twice_give_the_same_lora(
    correct: Callable[..., Corrected], adapted: Corrected, tmp_path: Path
) -> None:
    again = correct(tmp_path / "again", settings=LORA.model_copy(update={"gradient_checkpointing": True}))
    assert again.after.loss_nats == pytest.approx(adapted.after.loss_nats, rel=1e-5)


@pytest.mark.parametrize("kind", ["corrected", pytest.param("adapted", marks=pytest.mark.slow)])
def test_a_killed_call_goes_on_from_its_checkpoint_to_the_same_bytes(
    correct: Callable[..., Corrected],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    kind: str,
) -> None:
    whole, settings = request.getfixturevalue(kind), {"corrected": SETTINGS, "adapted": LORA}[kind]
    original = correcting.correction_schedule

    def checkpoint_always(*arguments: Any) -> Any:
        schedule, training = original(*arguments)
        return schedule, training.model_copy(update={"checkpoint_minutes": 0.0})

    def kill(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(correcting, "correction_schedule", checkpoint_always)
    with monkeypatch.context() as patch:
        patch.setattr(correcting, "export_student", kill)
        with pytest.raises(KeyboardInterrupt):
            correct(tmp_path / "out", settings=settings)
    (checkpoint,) = (tmp_path / "out.work").glob("checkpoints-*/*/checkpoint-*")
    assert checkpoint.name == "checkpoint-7"
    with monkeypatch.context() as patch:
        patch.setattr("minitron_nas.pipeline.stages.tokenize.split_text", kill)  # the text is read once
        again = correct(tmp_path / "out", settings=settings)
    assert weights(again.path) == weights(whole.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_cannot_be_used_is_refused_before_any_work(
    correct: Callable[..., Corrected], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no file matches"):
        correct(tmp_path / "out", data=tmp_path / "nowhere.txt")
    monkeypatch.setattr("minitron_nas.distillation.training.lora.find_spec", lambda name: None)
    with pytest.raises(PlanError, match="needs peft"):
        correct(tmp_path / "out", settings=CorrectionSettings(weights="lora"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(RunFolderError, match="exists and is not empty"):
        correct(tmp_path)


@pytest.mark.parametrize(
    ("tokens", "warmup_steps", "num_steps", "expected"),
    [(64 * 1000, 120, 1000, 120), (64 * 100, 120, 100, 50), (64 * 999, 0, 999, 0), (64, 120, 1, 0)],
)
def test_the_learning_rate_rises_for_as_many_steps_as_are_asked_for_and_at_most_half_of_all(
    tokens: int, warmup_steps: int, num_steps: int, expected: int
) -> None:
    settings = CorrectionSettings(warmup_steps=warmup_steps, batch_sequences=1)
    schedule, training = correction_schedule(settings, tokens, 64)
    factors = [schedule.learning_rate_factor(step, training) for step in range(num_steps)]
    assert schedule.num_steps == num_steps
    assert [factor < 1 for factor in factors[: expected + 1]] == [True] * expected + [False]
    assert training.loss == "lm"


def test_the_default_rate_is_a_fifth_of_llama_3s_peak_and_ten_times_that_for_lora() -> None:
    rates = [CorrectionSettings(weights=weights).peak_learning_rate for weights in ("full", "lora")]
    assert rates == pytest.approx([3e-4 / 5, 10 * 3e-4 / 5])
    assert CorrectionSettings(learning_rate=1e-5).peak_learning_rate == 1e-5


def test_a_run_corrects_on_the_students_tokens_or_the_first_of_them() -> None:
    assert correction_tokens(CorrectionSettings(), 1000) == 1000
    assert correction_tokens(CorrectionSettings(tokens=400), 1000) == 400
    with pytest.raises(PlanError, match=r"correct.tokens=1,001 is more than the 1,000 tokens of distillation, whose"):
        correction_tokens(CorrectionSettings(tokens=1001), 1000)


@pytest.mark.slow
def test_a_run_prunes_teaches_and_measures_with_the_corrected_teacher(
    build: Callable[..., Family], trained_teacher: Path, other_text: Path, tmp_path: Path
) -> None:
    overrides = ("correct.tokens=1k", "correct.learning_rate=1e-3", "correct.batch_sequences=4")
    family = build(tmp_path / "run", *overrides, data=other_text)
    corrected = open_checkpoint(family.path / "corrected")
    assert corrected.fingerprint != open_checkpoint(trained_teacher).fingerprint
    assert family.teacher.path == family.path / "corrected"
    assert family.teacher.kl_nats == 0.0
    assert [path.name for path in (family.path / "signals").iterdir()] == [corrected.fingerprint]
    lineage = json.loads((family.members[0].path / "lineage.json").read_text())
    assert lineage["teacher"]["fingerprint"] == lineage["source"]["fingerprint"] == corrected.fingerprint
    assert lineage["correction"]["tokens"] == 1000
    assert lineage["correction"]["teacher"] == open_checkpoint(trained_teacher).fingerprint
    entries = [json.loads(line) for line in (family.path / "ledger.jsonl").read_text().splitlines()]
    (told,) = [entry["result"] for entry in entries if entry["stage"] == "teacher correct"]
    assert told["loss_nats"] < told["loss_nats_before"]
    assert not (family.path / "checkpoints").exists()


def test_a_student_that_follows_a_finished_correction_is_the_corrected_teachers_student(
    corrected: Corrected, trained_teacher: Path, other_text: Path, tmp_path: Path
) -> None:
    online = DistillationSettings(
        tokens=1024, batch_sequences=4, micro_batch_sequences=4, num_evaluations=1, teacher_signal="online"
    )
    student = tmp_path / "student"
    prune(
        trained_teacher, student, {"intermediate_size": 64}, data=other_text, text=TEXT, repair="none", display=Quiet()
    )

    def learn(name: str, teacher: Path, **options: Any) -> bytes:
        out = tmp_path / name
        return weights(
            distill(student, teacher, other_text, out, settings=online, text=TEXT, display=Quiet(), **options).path
        )

    followed = learn("followed", trained_teacher, correction=corrected.path)
    assert followed == learn("waited", corrected.path)
    assert followed != learn("uncorrected", trained_teacher)
