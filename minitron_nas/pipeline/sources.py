"""The first stages of a run: text becomes tokens, and the KD teacher speaks once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from minitron_nas.distillation.job import TrainingFiles
from minitron_nas.distillation.schedule import Schedule
from minitron_nas.distillation.signals import load_for_inference, write_hidden_cache
from minitron_nas.distillation.text import read_documents
from minitron_nas.distillation.tokens import ONE_PASS_TOKENS, PackedTokens, TokenSplits, split_tokens
from minitron_nas.execution.device import release_memory
from minitron_nas.families.checkpoint import Checkpoint
from minitron_nas.pipeline.engine import Engine
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.progress import Progress


@dataclass(frozen=True, slots=True)
class Tokens:
    """The run's packed tokens.

    Attributes:
        folder: Where the parts lie.
        fingerprint: A hash of all parts.
        distillation_tokens: KD tokens of one student.
    """

    folder: Path
    fingerprint: str
    distillation_tokens: int

    def part(self, name: str) -> PackedTokens:
        """Open calibration, validation or train."""
        return PackedTokens.load(self.file(name))

    def file(self, name: str) -> Path:
        """The file of a part."""
        return self.folder / f"{name}.safetensors"


def prepare_tokens(engine: Engine, plan: FamilyPlan, teacher: Checkpoint, data: Any) -> Tokens:
    """Read, split and pack the text; later stages read the result only."""
    folder = engine.folder.tokens

    def action(_: Progress) -> dict[str, Any]:
        tokenizer = AutoTokenizer.from_pretrained(teacher.path)
        documents = read_documents(data, plan.text, plan.seed)
        splits = split_tokens(documents, tokenizer, plan.text, plan.distillation.tokens)
        tokens = plan.distillation.tokens or min(splits.train.num_tokens, ONE_PASS_TOKENS)
        schedule = Schedule.resolve(plan.distillation, tokens, plan.text.sequence_length)
        used = splits.train.first(schedule.num_steps * schedule.batch_sequences)
        splits = TokenSplits(splits.calibration, splits.validation, used)
        splits.save(folder)
        prints = [part.fingerprint for part in (splits.calibration, splits.validation, splits.train)]
        return {"fingerprint": "-".join(prints), "distillation_tokens": tokens}

    inputs = {
        "data": plan.data,
        "text": plan.text.model_dump(),
        "distillation": [plan.distillation.tokens, plan.distillation.batch_sequences],
        "seed": plan.seed,
        "teacher": teacher.fingerprint,
    }
    outputs = [folder / f"{name}.safetensors" for name in ("calibration", "validation", "train")]
    result = engine.stage("text", "read, split and pack", inputs, outputs, action)
    return Tokens(folder, result["fingerprint"], result["distillation_tokens"])


def teacher_files(engine: Engine, plan: FamilyPlan, teacher: Checkpoint, name: str, tokens: Tokens) -> TrainingFiles:
    """Cache the KD teacher's final hidden states over validation and, if asked for, training tokens."""
    parts = ["validation"] if plan.distillation.teacher_signal == "online" else ["validation", "train"]
    caches = {part: engine.folder.signal(teacher.fingerprint, part) for part in parts}

    def action(progress: Progress) -> None:
        model = load_for_inference(teacher.path)
        sizes = {part: tokens.part(part).num_tokens for part in parts}
        done = 0
        for part in parts:
            if not caches[part].exists():
                write_hidden_cache(
                    model,
                    tokens.part(part),
                    caches[part],
                    progress=lambda now, _, before=done: progress(before + now, sum(sizes.values())),  # type: ignore[misc]
                )
            done += sizes[part]
        del model
        release_memory()

    inputs = {"teacher": teacher.fingerprint, "tokens": tokens.fingerprint, "parts": parts}
    title = f"{name} speaks once (final hidden states of the KD text)"
    engine.stage(f"{name} signal", title, inputs, list(caches.values()), action)
    return TrainingFiles(
        teacher=teacher.path,
        train_tokens=tokens.file("train"),
        train_cache=caches.get("train"),
        validation_tokens=tokens.file("validation"),
        validation_cache=caches["validation"],
    )
