"""The stage in which the KD teacher speaks once."""

from minitron_nas.distillation.job import TrainingFiles
from minitron_nas.distillation.signals.caches import cached_parts, keep_signals
from minitron_nas.distillation.signals.folder import FORMAT, files_of
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.pipeline.engine import Engine
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.stages.tokenize import Tokens
from minitron_nas.progress import Progress

_SAID = {
    "hidden_cache": "final hidden states of the KD text",
    "top_k": "its most probable tokens over the KD text",
    "online": "final hidden states of the validation text",
}


def teacher_files(engine: Engine, plan: FamilyPlan, teacher: Checkpoint, name: str, tokens: Tokens) -> TrainingFiles:
    """Cache what the KD teacher says over the validation text and, unless it runs online, over the training text."""
    parts = cached_parts(plan.distillation)
    caches = {part: engine.folder.signal(teacher.fingerprint, part) for part in parts}

    def action(progress: Progress) -> None:
        texts = {part: tokens.part(part) for part in parts}
        keep_signals(teacher.path, teacher.fingerprint, parts, texts, caches, progress)

    inputs = {"teacher": teacher.fingerprint, "tokens": tokens.fingerprint, "parts": parts, "format": FORMAT}
    outputs = [file for folder in caches.values() for file in files_of(folder)]
    title = f"{name} speaks once ({_SAID[plan.distillation.teacher_signal]})"
    engine.stage(f"{name} signal", title, inputs, outputs, action)
    return TrainingFiles(
        teacher=teacher.path,
        train_tokens=tokens.file("train"),
        train_cache=caches.get("train"),
        validation_tokens=tokens.file("validation"),
        validation_cache=caches["validation"],
        teacher_fingerprint=teacher.fingerprint,
    )
