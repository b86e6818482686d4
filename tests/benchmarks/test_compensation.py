"""What it is worth to make up for the mean over fewer channels: untrained KL of SmolLM2 with and without."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.importance.score import score_importance
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.models.loading import load_for_inference
from minitron_nas.models.source import demo_teacher
from minitron_nas.pruning import student as surgery
from minitron_nas.pruning.compensate import Scaling
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import EMBEDDED
from minitron_nas.text.splits import TextReader, TokenSplits, split_text

HIDDEN_SIZES = (540, 504, 432, 288)
TEXT = TextSettings(sequence_length=256, calibration_samples=64, validation_samples=16)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
def test_students_start_nearer_to_the_teacher_with_compensated_norms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = demo_teacher(tmp_path)
    tokenizer, vocab_size = AutoTokenizer.from_pretrained(checkpoint.path), checkpoint.architecture.vocab_size
    split_text(EMBEDDED, TextReader(tokenizer, vocab_size, TEXT), 0, TEXT.sequence_length, tmp_path / "tokens")
    tokens = TokenSplits.load(tmp_path / "tokens")
    teacher = load_for_inference(checkpoint.path)
    scores = score_importance(
        teacher, checkpoint.architecture, checkpoint.layout, tokens.calibration, ImportanceSettings()
    )
    write_prepared(tmp_path / "prepared", PruningOrder.from_scores(scores, checkpoint.architecture, (0, -1)))
    prepared = PreparedTeacher.open(checkpoint.path, tmp_path / "prepared")

    def untrained_kl(hidden_size: int) -> float:
        target = checkpoint.architecture.reshaped({"hidden_size": hidden_size})
        student = surgery.build_student(prepared, target, torch.bfloat16)
        return validate(student, tokens.validation, OnlineTeacher(teacher)).kl_nats

    compensated = [untrained_kl(size) for size in HIDDEN_SIZES]
    monkeypatch.setattr(surgery, "scaling_of", lambda *_: Scaling())
    monkeypatch.setattr(surgery, "scaled_constants", lambda *_: {})
    plain = [untrained_kl(size) for size in HIDDEN_SIZES]
    for size, one, other in zip(HIDDEN_SIZES, compensated, plain, strict=True):
        print(f"hidden_size {size}: untrained KL {one:.3f} nats with compensated norms, {other:.3f} without")
    assert all(one < other for one, other in zip(compensated, plain, strict=True))
