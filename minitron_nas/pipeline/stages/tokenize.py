"""The first stage of a run: text becomes tokens."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.pipeline.engine import Engine
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.progress import Progress
from minitron_nas.text.splits import TokenSplits, split_text
from minitron_nas.text.tokens import PackedTokens


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
            "distillation_tokens": plan.distillation.tokens or splits.one_pass_tokens,
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
