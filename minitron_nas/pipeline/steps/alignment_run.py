"""The training of an alignment: in the loop of distillation, or for preferences in trl's."""

import math
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from minitron_nas.alignment.parts import pack_turns
from minitron_nas.alignment.preference import UNTRAINED_LOSS, Preferences, prefer
from minitron_nas.alignment.settings import AlignmentSettings
from minitron_nas.alignment.texts import AlignmentTexts
from minitron_nas.distillation.job import StreamFiles, TrainingFiles, TrainingJob
from minitron_nas.distillation.launch import run as run_training
from minitron_nas.distillation.launch import trained
from minitron_nas.distillation.loss.losses import Losses
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.training.arguments import micro_batch
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.execution.device import release_memory
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.execution.workers import Workers
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.loading import load_for_inference, load_for_training
from minitron_nas.pipeline.display import Display
from minitron_nas.pipeline.steps.speech import settled, training_files
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.text.tokens import PackedTokens

_MOST_SEQUENCES = 64
_WANTED_STEPS = 100


@dataclass(frozen=True, slots=True)
class Held:
    """A model on held-out conversations, over the tokens that assistants write.

    Attributes:
        loss_nats: Next-token loss; for `dpo` on what was chosen.
        kl_nats: KL(teacher || model); None without a teacher.
        preference_loss: Of `dpo`, what is minimised; None otherwise.
        margin: Of `dpo`, beta times how much more what is chosen has gained in log-probability than what is rejected.
        accuracy: Of `dpo`, the share of preferences whose margin is above 0; None before training, when all are 0.
    """

    loss_nats: float
    kl_nats: float | None = None
    preference_loss: float | None = None
    margin: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The models of an alignment.

    Attributes:
        student: What is aligned.
        name: What it is called.
        teacher: The instruct model to learn from; None where there is none.
        teacher_name: What it is called.
        instruct: The model that the template comes from; None where it is the student's own.
        instruct_name: What it is called.
        chat: The folder of what lies beside the aligned weights.
        tokenizer: Of that folder.
    """

    student: Checkpoint
    name: str
    teacher: Checkpoint | None
    teacher_name: str
    instruct: Path | None
    instruct_name: str
    chat: Path
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training has left: the model at its best, and what was measured."""

    model: CausalLM
    before: Held
    after: Held
    harm: str | None
    tokens: int
    exported_tokens: int


@dataclass(frozen=True, slots=True)
class AlignmentRun:
    """All that a training needs."""

    opened: Opened
    texts: AlignmentTexts
    settings: AlignmentSettings
    length: int
    seed: int
    runner: RunnerSettings
    work: Path
    display: Display

    def learn(self) -> Outcome:
        """Train on conversations in the loop of distillation, which goes on from its checkpoints by itself."""
        opened, settings = self.opened, self.settings.training()
        parts = {"train": pack_turns(self.texts.train.turns, self.length), "validation": self.texts.packed_held_out}
        schedule = self._schedule(parts["train"].num_sequences, self.length)
        micro_batch(settings, schedule, self.runner.num_processes or 1)  # before the teacher speaks
        if opened.teacher is None:
            files = self._without_teacher(parts)
        else:
            settings = settled(settings, opened.teacher, parts["train"].num_tokens, self.work, self.display)
            workers = Workers(self.runner, self.work / "workers")
            with self.display.stage("signal", "the teacher speaks once") as progress:
                files = training_files(workers, settings, opened.teacher, parts, self.work, self.work, progress)
        other = "" if opened.teacher is None else f"-{opened.teacher.fingerprint}"
        checkpoints = self.work / f"checkpoints-{opened.student.fingerprint}{other}"
        job = TrainingJob(
            opened.student.path, files, settings, schedule, checkpoints, self.seed, self.work / "training"
        )
        with self.display.stage("align", _title(schedule, "sequences")) as progress:
            result = run_training(job, self.runner, progress)
        before, after = (
            Held(point.judged("loss_nats"), point.kl_nats if opened.teacher is not None else None)
            for point in (result.curve[0], result.best)
        )
        return Outcome(trained(job), before, after, result.harm, schedule.num_tokens, result.best.tokens)

    def prefer(self) -> Outcome:
        """Train on preferences in trl's loop."""
        student, settings = self.opened.student, self.settings
        schedule = self._schedule(len(self.texts.pairs), 1)
        said = [(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for pair in self.texts.pairs]
        held = [(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for pair in self.texts.held_out_pairs]
        how = settings.model_dump(exclude={"micro_batch_sequences", "gradient_checkpointing", "checkpoint_minutes"})
        identity = fingerprint(
            {"student": student.fingerprint, "pairs": said, "held out": held, "settings": how, "seed": self.seed}
        )
        with self.display.stage("align", _title(schedule, "pairs")) as progress:
            preferred = prefer(
                student.path,
                Preferences(self.texts.pairs, self.texts.held_out_pairs, settings, schedule, self.seed),
                self.work / f"checkpoints-{identity}",
                self.opened.tokenizer,
                progress,
            )
        release_memory()
        best, last = preferred.best, preferred.curve[-1]
        losses = [self._held_out_loss(path) for path in (student.path, preferred.weights)]
        model = load_for_training(student.path)
        if best.step:
            model.load_state_dict(load_for_training(preferred.weights).state_dict())
        harm = None
        if not last.loss <= UNTRAINED_LOSS:
            kept = f"those after {best.step:,} steps are kept" if best.step else "the untrained ones are kept"
            harm = (
                f"training made it worse: preference loss {UNTRAINED_LOSS:.3f} nats before it, {last.loss:.3f} after "
                f"{last.step:,} steps; of its weights {kept}"
            )
        per_step = sum(len(one) for pair in said for one in pair) / len(said) * schedule.batch_sequences
        return Outcome(
            model,
            Held(losses[0].loss_nats, None, UNTRAINED_LOSS, 0.0),
            Held(losses[1].loss_nats, None, best.loss, best.margin, best.accuracy),
            harm,
            round(per_step * schedule.num_steps),
            round(per_step * best.step),
        )

    def _held_out_loss(self, path: Path) -> Losses:
        losses = validate(load_for_inference(path), self.texts.packed_held_out, None)
        release_memory()
        return losses

    def _without_teacher(self, parts: dict[str, PackedTokens]) -> TrainingFiles:
        files = {}
        for part, tokens in parts.items():
            files[part] = StreamFiles(self.work / f"{part}-{tokens.fingerprint}.safetensors")
            tokens.save(files[part].tokens)
        return TrainingFiles(
            self.opened.student.path, self.opened.student.fingerprint, files["train"], files["validation"]
        )

    def _schedule(self, num_sequences: int, length: int) -> Schedule:
        """Return steps and batch: every row as often as epochs say, the last step included."""
        whole = max(round(num_sequences * self.settings.epochs), 1)
        wanted = min(max(whole // _WANTED_STEPS, 1), _MOST_SEQUENCES)
        micro = self.settings.micro_batch_sequences
        batch = self.settings.batch_sequences or max(wanted // micro * micro, 1)
        return Schedule(math.ceil(whole / batch), batch, length)


def _title(schedule: Schedule, what: str) -> str:
    return f"{schedule.num_steps:,} steps of {schedule.batch_sequences:,} {what}"
