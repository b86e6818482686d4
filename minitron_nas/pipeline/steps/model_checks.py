"""Two models held against each other: what lies beside the weights, what they say of a text, how fast they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from minitron_nas.distillation.loss.losses import Losses
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.errors import CheckpointError, InvalidArchitectureError
from minitron_nas.evaluation.continuations import NEW_TOKENS, Endings, agreement, continuations, endings, ends_of
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.evaluation.speed import measure_speed
from minitron_nas.execution.device import release_memory
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.source import ModelSource, resolve_teacher
from minitron_nas.pipeline.display import Display
from minitron_nas.pipeline.steps.check import Check, ratio, rise
from minitron_nas.pipeline.steps.companions import SAME_TOKENS, Companions, checks_of_settings, checks_of_tokens
from minitron_nas.pipeline.steps.evaluate import load_and_tell, read_whole_text, validate_all
from minitron_nas.pipeline.steps.limits import CompareLimits
from minitron_nas.pipeline.steps.task_checks import checks_of_tasks, results_of_models
from minitron_nas.progress import silent
from minitron_nas.text.settings import TextSettings


@dataclass(frozen=True, slots=True)
class Measuring:
    """How two models are measured.

    Attributes:
        text: Text, jsonl or parquet files that neither has seen.
        settings: Column, split and length of sequences of the text.
        evaluation: Prompts and rounds of the speed, and lm-eval tasks.
        seed: Of the examples in prompts of tasks.
        limits: What is allowed.
        display: Shows progress.
    """

    text: str | Path
    settings: TextSettings
    evaluation: EvaluationSettings
    seed: int
    limits: CompareLimits
    display: Display


def checks_of_models(base: ModelSource, other: ModelSource, how: Measuring) -> Iterator[Check]:
    """Yield a check for every measure.

    A second model that is no intact one is measured no further, and one that does not read the same tokens by its speed
    alone.

    Args:
        base: The model that the other is held against.
        other: The other.
        how: How they are measured.

    Raises:
        MinitronNasError: If the first or the text cannot be used.
    """
    with TemporaryDirectory() as work:
        first = resolve_teacher(base, Path(work) / "base", compare=False)
        companions = Companions.of(first)
        try:
            second = resolve_teacher(other, Path(work) / "other", compare=False)
            others = Companions.of(second)
        except (CheckpointError, InvalidArchitectureError) as error:
            yield Check("checkpoint", 1.0, 0.0, words=f"no intact model: {error}")
            return
        tokens = checks_of_tokens(companions, others, how.text, how.settings)
        yield from tokens
        yield from checks_of_settings(companions, others, how.limits.differing_settings)
        sizes = float(first.num_parameters), float(second.num_parameters)
        yield Check("parameters_ratio", ratio(*sizes), how.limits.parameters_ratio, "at most", *sizes)
        readable = all(check.passes for check in tokens if check.measure in SAME_TOKENS)
        yield from _on_text(first, second, how) if readable else _not_on_text(how.limits)
        yield from _speeds(first, second, how)
        if readable:
            yield from _tasks(first, second, how)


def _on_text(base: Checkpoint, other: Checkpoint, how: Measuring) -> Iterator[Check]:
    with how.display.stage("text", "loss, KL and greedy continuations") as progress:
        parts = read_whole_text([base, other], how.text, how.settings).parts
        first, second = (load_and_tell(one, role, how.display) for one, role in ((base, "base"), (other, "other")))
        losses = [
            validate_all(model, parts, OnlineTeacher(first), progress if model is second else silent)
            for model in (first, second)
        ]
        ends = ends_of(first, base.path), ends_of(second, other.path)
        written = [continuations(model, parts[0], own) for model, own in zip((first, second), ends, strict=True)]
        del first, second
        release_memory()
    yield from _of_losses(losses[0], losses[1], how.limits)
    yield from _of_written(written[0], written[1], how.limits)
    ended = [endings(*each) for each in zip(written, ends, strict=True)]
    yield from _of_endings(ended[0], ended[1], how.limits)


def _not_on_text(limits: CompareLimits) -> Iterator[Check]:
    yield Check("kl_nats", None, limits.kl_nats)
    yield Check("loss_increase_nats", None, limits.loss_increase_nats)
    yield Check("agreement_share", None, limits.agreement_share, "at least")
    yield Check("ended_drop", None, limits.ended_drop)


def _of_losses(base: Losses, other: Losses, limits: CompareLimits) -> Iterator[Check]:
    yield Check("kl_nats", other.kl_nats, limits.kl_nats)
    nats = (base.loss_nats, other.loss_nats)
    yield Check("loss_increase_nats", nats[1] - nats[0], limits.loss_increase_nats, "at most", *nats)


def _of_written(base: Sequence[list[int]], other: Sequence[list[int]], limits: CompareLimits) -> Iterator[Check]:
    first, second = ([own[:NEW_TOKENS] for own in each] for each in (base, other))
    shares = [same / len(own) for same, own in zip(agreement(second, first), first, strict=True)]
    yield Check("agreement_share", fmean(shares), limits.agreement_share, "at least")


def _of_endings(base: Endings, other: Endings, limits: CompareLimits) -> Iterator[Check]:
    tokens, shares = (base.written_tokens, other.written_tokens), (base.ended_share, other.ended_share)
    yield Check("written_tokens_ratio", ratio(*tokens), None, "at most", *tokens)
    yield Check("ended_drop", rise(*reversed(shares)), limits.ended_drop, "at most", *shares)


def _speeds(base: Checkpoint, other: Checkpoint, how: Measuring) -> Iterator[Check]:
    limits = how.limits
    if not limits.asks_for_speed:
        return
    with how.display.stage("speed", "timed in turns"):
        first, second = measure_speed(base.path, how.evaluation), measure_speed(other.path, how.evaluation, base.path)
    for phase in ("prefill", "decode"):
        name, column = f"{phase}_speedup", f"{phase}_tokens_per_second"
        speeds = getattr(first, column), getattr(second, column)
        yield Check(name, getattr(second, name), getattr(limits, name), "at least", *speeds)
    memory = first.peak_memory_bytes, second.peak_memory_bytes
    yield Check("memory_ratio", ratio(*memory), limits.memory_ratio, "at most", *memory)


def _tasks(base: Checkpoint, other: Checkpoint, how: Measuring) -> Iterator[Check]:
    if not how.evaluation.tasks:
        return
    with how.display.stage("tasks", f"lm-eval: {', '.join(how.evaluation.tasks)}"):
        results = results_of_models(base.path, other.path, how.evaluation, how.seed)
    yield from checks_of_tasks(*results, how.limits.task_drop)
