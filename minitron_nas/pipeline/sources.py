"""The first stages of a run: text becomes tokens, and the KD teacher speaks once."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from minitron_nas.distillation.schedule import Schedule
from minitron_nas.distillation.settings import TextSettings
from minitron_nas.distillation.signals import load_for_inference, write_hidden_cache
from minitron_nas.distillation.splits import ONE_PASS_TOKENS, TokenSplits, split_text
from minitron_nas.distillation.text import data_name
from minitron_nas.distillation.tokens import PackedTokens
from minitron_nas.execution.device import release_memory
from minitron_nas.families.checkpoint import Checkpoint
from minitron_nas.pipeline.engine import Engine
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.progress import Progress
from minitron_nas.search.tournament import TrainingFiles
from minitron_nas.storage.ledger import fingerprint


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


def read_splits(
    work: Path,
    data: Any,
    teacher: Checkpoint,
    text: TextSettings,
    tokens: int | None,
    seed: int,
    progress: Progress,
) -> TokenSplits:
    """Read, split and pack the text of a step that stands alone; repeated, it finds what is done already.

    Args:
        work: A folder of the step.
        data: The text.
        teacher: Whose tokenizer reads it.
        text: How text becomes tokens.
        tokens: Training tokens needed, or None for one pass over the text.
        seed: Decides the order of documents.
        progress: Told about tokens.

    Raises:
        DataError: If the text is missing or too short.
    """
    inputs = {"data": data_name(data), "text": text.model_dump(), "tokens": tokens, "seed": seed}
    folder = work / f"tokens-{fingerprint({**inputs, 'teacher': teacher.fingerprint})}"
    if not folder.exists():
        split_text(data, AutoTokenizer.from_pretrained(teacher.path), text, seed, tokens, folder, progress=progress)
    return TokenSplits.load(folder)


def prepare_tokens(engine: Engine, plan: FamilyPlan, teacher: Checkpoint, data: Any) -> Tokens:
    """Read, split and pack the text; later stages read the result only."""
    folder = engine.folder.tokens

    def action(progress: Progress) -> dict[str, Any]:
        tokenizer, wanted, used = AutoTokenizer.from_pretrained(teacher.path), plan.distillation.tokens, None
        if wanted is not None:
            schedule = Schedule.resolve(plan.distillation, wanted, plan.text.sequence_length)
            used = schedule.num_steps * schedule.batch_sequences
        counts = split_text(data, tokenizer, plan.text, plan.seed, wanted, folder, used, progress)
        splits = TokenSplits.load(folder)
        prints = [part.fingerprint for part in (splits.calibration, splits.validation, splits.train)]
        return {
            "fingerprint": "-".join(prints),
            "distillation_tokens": wanted or min(splits.train.num_tokens, ONE_PASS_TOKENS),
            "sources": [asdict(count) for count in counts],
        }

    inputs = {
        "data": plan.to_dict()["data"],
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
