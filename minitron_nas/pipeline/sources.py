"""The first stages of a run: text becomes tokens, and the KD teacher speaks once."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer

from minitron_nas.distillation.job import TrainingFiles
from minitron_nas.distillation.signals.caches import cached_parts, keep_signals
from minitron_nas.distillation.signals.folder import FORMAT, files_of
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.pipeline.engine import Engine
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.provenance import PROOF_TOKENS
from minitron_nas.progress import Progress
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import data_name
from minitron_nas.text.splits import TokenSplits, split_text
from minitron_nas.text.token_log import ONE_PASS_TOKENS
from minitron_nas.text.tokens import PackedTokens

_SAID = {
    "hidden_cache": "final hidden states of the KD text",
    "top_k": "its most probable tokens over the KD text",
    "online": "final hidden states of the validation text",
}


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
        PlanError: If the teacher knows fewer positions than a sequence has.
    """
    teacher.require_length(text.sequence_length)
    inputs = {"data": data_name(data), "text": text.model_dump(), "tokens": tokens, "seed": seed}
    folder = work / f"tokens-{fingerprint({**inputs, 'teacher': teacher.fingerprint})}"
    if not folder.exists():
        tokenizer, vocab_size = AutoTokenizer.from_pretrained(teacher.path), teacher.architecture.vocab_size
        split_text(data, tokenizer, vocab_size, text, seed, tokens, folder, progress=progress)
    return TokenSplits.load(folder)


def one_pass_tokens(splits: TokenSplits) -> int:
    """Return the tokens of a training that no budget limits."""
    return min(splits.train.num_tokens, ONE_PASS_TOKENS)


def proof_prompt(validation: PackedTokens) -> Tensor:
    """Return the tokens, (1, seq_len), over which a student that is reloaded must say what it said before."""
    return validation.first(1).in_memory().input_ids[:, :PROOF_TOKENS]


def prepare_tokens(engine: Engine, plan: FamilyPlan, teacher: Checkpoint, data: Any) -> Tokens:
    """Read, split and pack the text; later stages read the result only."""
    folder = engine.folder.tokens

    def action(progress: Progress) -> dict[str, Any]:
        tokenizer, wanted, used = AutoTokenizer.from_pretrained(teacher.path), plan.distillation.tokens, None
        if wanted is not None:
            schedule = Schedule.resolve(plan.distillation, wanted, plan.text.sequence_length)
            wanted, used = schedule.num_tokens, schedule.num_steps * schedule.batch_sequences
        vocab_size = teacher.architecture.vocab_size
        counts = split_text(data, tokenizer, vocab_size, plan.text, plan.seed, wanted, folder, used, progress)
        splits = TokenSplits.load(folder)
        prints = [part.fingerprint for part in (splits.calibration, splits.validation, splits.train)]
        return {
            "fingerprint": "-".join(prints),
            "distillation_tokens": plan.distillation.tokens or one_pass_tokens(splits),
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
