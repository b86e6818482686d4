"""The stages that measure: every member beside the teacher and its baselines."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minitron_nas.architecture.costs import (
    count_embedding_parameters,
    kv_cache_bytes_per_token,
    state_bytes_per_sequence,
)
from minitron_nas.distillation.loss.losses import Losses
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import HiddenCache
from minitron_nas.evaluation.continuations import (
    NEW_TOKENS,
    agreement,
    continuations,
    endings,
    ends_of,
    prompts,
    repetition,
    until_end,
)
from minitron_nas.evaluation.paired import TaskResults
from minitron_nas.evaluation.perplexity import perplexity
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.evaluation.speed import measure_speed
from minitron_nas.execution.device import release_memory
from minitron_nas.models.loading import load_for_inference
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.engine import Done, Left, Stage
from minitron_nas.pipeline.member import TrainedMember
from minitron_nas.pipeline.run import Run, Source
from minitron_nas.pipeline.steps.tasks import benchmark, difference_rows, task_tables
from minitron_nas.progress import Progress
from minitron_nas.storage.schemas import BENCHMARKS, DIFFERENCES, DOCUMENTS, EVALUATIONS, SAMPLES, TEXTS
from minitron_nas.storage.tables import read_rows
from minitron_nas.text.held_out import means_by_text
from minitron_nas.text.tokens import PackedTokens

_NUM_SAMPLES = 4
"""Prompts that the report shows with what each model makes of them."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A model that has answered lm-eval's tasks, and the stage in which it did."""

    member: TrainedMember
    done: Done


def teacher_member(run: Run) -> TrainedMember:
    """Return the first teacher as a member of its own family."""
    path, folder = run.teacher.checkpoint.path, run.folder.path
    return TrainedMember(
        "teacher", "teacher", None, str(path.relative_to(folder) if path.is_relative_to(folder) else path)
    )


def evaluate_member(run: Run, member: TrainedMember, model: Source, signal: Done) -> Answered | None:
    """Measure one model and write its rows of `evaluations.parquet` and `benchmarks.parquet`.

    Returns the stage of lm-eval's tasks, None where the plan names none.

    Args:
        run: The run.
        member: What its training has shown.
        model: The model itself.
        signal: The stage in which the first teacher spoke, to whose states the KL is taken.
    """
    _measure(run, member, model, signal)
    return Answered(member, _benchmark(run, member, model)) if run.plan.evaluation.tasks else None


def _measure(run: Run, member: TrainedMember, model: Source, signal: Done) -> None:
    checkpoint, teacher = model.checkpoint, run.teacher.checkpoint
    shape, layout = checkpoint.architecture, checkpoint.layout
    cache = run.folder.signal(teacher.fingerprint, "validation")

    def action(progress: Progress) -> Left:
        measured = run.workers.call(
            measure,
            progress,
            model=checkpoint.path,
            held_out=run.tokens.file("validation"),
            cache=cache,
            teacher=teacher.fingerprint,
            settings=run.plan.evaluation,
            beside=None if member.role == "teacher" else teacher.path,
        )
        if measured["speed"]["decode_tokens_per_second"] is None:
            run.engine.note(f"{member.name}: larger than its device, so speed and memory are not measured")
        losses, written, ends = Losses(**measured["losses"]), measured["continuations"], measured["ends"]
        alike = [own[:NEW_TOKENS] for own in written]
        held_out = run.tokens.part("validation")
        row = {
            "model": member.name,
            "size": member.size,
            "role": member.role,
            "path": member.path,
            **shape.sizes(),
            "num_parameters": checkpoint.num_parameters,
            "num_embedding_parameters": count_embedding_parameters(shape, layout),
            "kv_cache_bytes_per_token": kv_cache_bytes_per_token(shape, layout),
            "state_bytes_per_sequence": state_bytes_per_sequence(shape, layout),
            "tokens_trained": member.tokens_trained,
            "exported_tokens": member.exported_tokens,
            "untrained_kl_nats": member.untrained_kl_nats,
            "kl_nats": losses.kl_nats,
            "loss_nats": losses.loss_nats,
            "perplexity": perplexity(losses.loss_nats),
            "agreement_tokens": fmean(agreement(alike, signal.result["continuations"])),
            "repeated_share": repetition(alike),
            **asdict(endings(written, ends)),
            **measured["speed"],
            "proof_max_abs_difference": member.proof.max_abs_difference if member.proof is not None else None,
        }
        by_text = _by_text(run.tokens.texts, member, losses, held_out)
        samples = _samples(AutoTokenizer.from_pretrained(teacher.path), member, held_out, written, ends)
        return Left(rows=((EVALUATIONS, [row]), (TEXTS, by_text), (SAMPLES, samples)))

    stage = Stage(
        f"{member.name} evaluate",
        "loss, KL, speed and memory",
        inputs.of_measurement(run.plan, member, checkpoint),
        needs=(run.tokens.done, signal, *model.made_by),
    )
    run.engine.run(stage, action)


def measure(
    model: Path,
    held_out: Path,
    cache: Path,
    teacher: str,
    settings: EvaluationSettings,
    beside: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Validate a model, let it continue held-out text, and time it.

    Args:
        model: Its folder.
        held_out: The file of the text.
        cache: What the teacher says over it.
        teacher: The fingerprint of the teacher.
        settings: Lengths and repeats of what is timed.
        beside: The folder of the model that it is timed in turns with; None for the teacher itself.
        progress: Told about tokens.

    Returns:
        `losses` and `speed` by the fields of `Losses` and `Speed`, `continuations` as token ids, and `ends`, the tokens
        that end a text.
    """
    tokens, loaded = PackedTokens.load(held_out), load_for_inference(model)
    losses = validate(loaded, tokens, HiddenCache(SignalPlace(cache, teacher, tokens)), progress=progress)
    ends = ends_of(loaded, model)
    written = continuations(loaded, tokens, ends)
    del loaded
    release_memory()
    speed = measure_speed(model, settings, beside)
    return {"losses": asdict(losses), "continuations": written, "ends": ends, "speed": asdict(speed)}


def _samples(
    tokenizer: PreTrainedTokenizerBase,
    member: TrainedMember,
    held_out: PackedTokens,
    written: list[list[int]],
    ends: list[int],
) -> list[dict[str, Any]]:
    """Return a member's rows of `samples.parquet`: what it writes, the token that ends it included."""
    about = {"size": member.size, "model": member.name}
    whole = (own[: len(until_end(own, ends)) + 1] for own in written)
    texts = zip(prompts(held_out).tolist(), whole, strict=True)
    return [
        {**about, "prompt": number, "prompt_text": tokenizer.decode(prompt), "text": tokenizer.decode(own)}
        for number, (prompt, own) in enumerate(islice(texts, _NUM_SAMPLES), 1)
    ]


def _by_text(
    texts: Sequence[str], member: TrainedMember, losses: Losses, held_out: PackedTokens
) -> list[dict[str, Any]]:
    """Return a member's rows of `texts.parquet`; none where there is one text."""
    if len(texts) == 1:
        return []
    kls = means_by_text(losses.sequence_kl_nats, held_out.num_counted(), len(texts))
    nats = means_by_text(losses.sequence_loss_nats, held_out.num_labels(), len(texts))
    about = {"size": member.size, "model": member.name, "look": "member"}
    return [
        {**about, "text": text, "kl_nats": kl, "loss_nats": loss}
        for text, kl, loss in zip(texts, kls, nats, strict=True)
    ]


def _benchmark(run: Run, member: TrainedMember, model: Source) -> Done:
    checkpoint = model.checkpoint

    def action(_: Progress) -> Left:
        found = run.workers.call(benchmark, model=checkpoint.path, settings=run.plan.evaluation, seed=run.plan.seed)
        return Left(rows=task_tables(member.name, found))

    stage = Stage(
        f"{member.name} benchmark",
        f"lm-eval: {', '.join(run.plan.evaluation.tasks)}",
        inputs.of_benchmarks(run.plan, checkpoint),
        needs=model.made_by,
    )
    return run.engine.run(stage, action)


def compare_tasks(run: Run, size: str, teacher: Answered, members: Sequence[Answered]) -> None:
    """Write a size's rows of `differences.parquet`: all against the teacher, and its students against its baselines.

    Args:
        run: The run.
        size: Its label.
        teacher: The first teacher.
        members: Students and baselines of the size.
    """

    def action(_: Progress) -> Left:
        found = {each.member.name: _results(run, each) for each in (teacher, *members)}
        pairs = [(model, other, found[model], found[other]) for model, other in _pairs(teacher, members)]
        rows = [{"size": size, **row} for pair in pairs for row in difference_rows(*pair)]
        return Left(rows=((DIFFERENCES, rows),))

    stage = Stage(
        f"{size} differences",
        "tasks: differences on the same documents",
        inputs.of_rows([each.done for each in (teacher, *members)]),
    )
    run.engine.run(stage, action)


def _pairs(teacher: Answered, members: Sequence[Answered]) -> Iterator[tuple[str, str]]:
    """Yield who is held against whom, by name."""
    for one in members:
        yield one.member.name, teacher.member.name
        if one.member.role == "student":
            yield from ((one.member.name, other.member.name) for other in members if other.member.role != "student")


def _results(run: Run, answered: Answered) -> TaskResults:
    rows = run.folder.rows(answered.done.entry.stage)
    return TaskResults(read_rows(rows, BENCHMARKS), read_rows(rows, DOCUMENTS))
