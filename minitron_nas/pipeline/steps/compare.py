"""Two models, or two runs, held against each other: a gate for whoever ships a compressed model again and again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import Field, ValidationError
from transformers import AutoTokenizer

from minitron_nas.distillation.loss.losses import Losses
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.errors import PlanError, RunFolderError
from minitron_nas.evaluation.continuations import agreement, continuations
from minitron_nas.evaluation.paired import TaskResults
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.evaluation.speed import measure_speed
from minitron_nas.execution.device import release_memory
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.source import ModelSource, resolve_teacher, source_name
from minitron_nas.pipeline.display import Display, default_display
from minitron_nas.pipeline.steps.check import Check
from minitron_nas.pipeline.steps.evaluate import load_and_tell, read_whole_text, validate_all
from minitron_nas.pipeline.steps.task_checks import checks_of_tasks, require_tasks, results_of_models, results_of_run
from minitron_nas.progress import silent
from minitron_nas.reporting.run_record import plain_rows, read_run
from minitron_nas.settings import Settings, plan_error
from minitron_nas.storage.atomic import whole_folder, write_text
from minitron_nas.storage.copies import local
from minitron_nas.storage.plain_yaml import load_yaml
from minitron_nas.storage.run_folder import holds_run, require_new_folder
from minitron_nas.storage.schemas import COMPARISON
from minitron_nas.storage.tables import write_rows
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.vocabulary import Vocabulary


class CompareLimits(Settings):
    """How far the second of two models may be from the first; null asks for nothing.

    The defaults let the same model pass that is stored in another type or in other files. What a compressed model has
    to keep to is up to who ships it, such as `kl_nats=0.6`, `loss_increase_nats=0.4`, `agreement_share=0.2`,
    `decode_speedup=1.3`.

    Attributes:
        kl_nats: The most KL(first || second) a token; of two runs the most by which a member's KL may rise.
        loss_increase_nats: The most by which the next-token loss may rise.
        agreement_share: The least share of greedily written tokens that are the first model's, up to the first that is
            not, on average over prompts.
        parameters_ratio: The most parameters over the first model's.
        memory_ratio: The most memory while generating over the first model's.
        prefill_speedup: The least tokens per second of a prompt over the first model's, timed in turns.
        decode_speedup: The same of decoding.
        task_drop: The most by which an lm-eval metric may fall that is a mean over documents and is to be high, such as
            accuracy. A fall beyond it counts where it is beyond by more than 1.96 standard errors, those of the
            differences on the same documents.
    """

    kl_nats: Annotated[float, Field(ge=0)] | None = 0.02
    loss_increase_nats: float | None = 0.02
    agreement_share: Annotated[float, Field(ge=0, le=1)] | None = 0.5
    parameters_ratio: Annotated[float, Field(gt=0)] | None = None
    memory_ratio: Annotated[float, Field(gt=0)] | None = None
    prefill_speedup: Annotated[float, Field(gt=0)] | None = None
    decode_speedup: Annotated[float, Field(gt=0)] | None = None
    task_drop: float | None = None

    @property
    def asks_for_speed(self) -> bool:
        """Whether models have to be timed."""
        return not self.memory_ratio is self.prefill_speedup is self.decode_speedup is None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models or runs held against each other.

    Attributes:
        base: The name of the first.
        other: The name of the second.
        checks: Every measure, with its limit.
    """

    base: str
    other: str
    checks: tuple[Check, ...]

    @property
    def passes(self) -> bool:
        """Whether every limit is kept to."""
        return all(check.passes for check in self.checks)

    def to_markdown(self) -> str:
        """Return it as a page."""
        failed = [check for check in self.checks if not check.passes]
        verdict = f"**{len(failed)} of {len(self.checks)} checks fail.**" if failed else "**All checks pass.**"
        rows = [
            f"| {_cell(' '.join(filter(None, (check.model, check.measure))))} | {_number(check.base)} | "
            f"{_number(check.other)} | {_cell(check.told)} | {'pass' if check.passes else '**fail**'} |"
            for check in self.checks
        ]
        head = ["| measure | base | other | | |", "|---|---|---|---|---|"]
        return "\n".join([f"# {_cell(self.other)} beside {_cell(self.base)}", "", verdict, "", *head, *rows, ""])


def compare(
    base: ModelSource,
    other: ModelSource,
    text: str | Path | None = None,
    limits: CompareLimits | None = None,
    *,
    out: str | Path | None = None,
    evaluation: EvaluationSettings | None = None,
    settings: TextSettings | None = None,
    seed: int = 0,
    display: Display | None = None,
) -> Comparison:
    """Hold a model against another, such as a compressed one against its original, or a run against an earlier one.

    Models are compared on a text: next-token loss, KL, greedy continuations; by tokenizer and chat template; and, where
    a limit asks for it, by speed, memory and lm-eval tasks. Runs are compared by what they have measured.

    Args:
        base: What the other is held against: a model, or a run, its folder or URI.
        other: Another of its kind.
        text: Text, jsonl or parquet files that neither has seen; of runs there is none.
        limits: What is allowed.
        out: A new folder for `comparison.parquet` and `comparison.md`.
        evaluation: Prompts and rounds of the speed, and lm-eval tasks.
        settings: Column, split and length of sequences of the text.
        seed: Of the examples in prompts of tasks.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do. That a limit is not kept to is no
            error.
    """
    limits, display = limits or CompareLimits(), display or default_display()
    evaluation, settings = evaluation or EvaluationSettings(), settings or TextSettings()
    folder = None if out is None else require_new_folder(Path(out))
    if runs := _runs(base, other):
        _require_measured(limits, text)
        checks = [*_of_runs(*runs, limits), *_tasks_of_runs(*runs, limits)]
    else:
        if limits.task_drop is not None and not evaluation.tasks:
            raise PlanError("task_drop is a limit on lm-eval tasks, and none is named; name some with evaluation.tasks")
        if evaluation.tasks:
            require_tasks(evaluation)
        if text is None:
            raise PlanError("two models are compared on a text that neither has seen; name one with --text")
        with TemporaryDirectory() as work:
            first, second = (
                resolve_teacher(source, Path(work) / name, compare=False)
                for source, name in ((base, "base"), (other, "other"))
            )
            checks = [
                *_of_models(first, second, text, settings, limits, display),
                *_speed_of_models(first, second, evaluation, limits, display),
                *_tasks_of_models(first, second, evaluation, seed, limits, display),
            ]
    found = Comparison(source_name(base), source_name(other), tuple(checks))
    if folder is not None:
        with whole_folder(folder) as partial:
            write_rows(partial, COMPARISON, [check.to_row() for check in found.checks])
            write_text(partial / "comparison.md", found.to_markdown())
    return found


def read_limits(path: Path | None, given: Sequence[str]) -> CompareLimits:
    """Read limits from a YAML file and from `name=value` strings, which come last.

    Args:
        path: The file; None for none.
        given: Such as `kl_nats=0.6`.

    Raises:
        PlanError: If the file cannot be read, or a limit is unknown or no number.
    """
    content: Any = {}
    if path is not None:
        try:
            content = load_yaml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise PlanError(f"{path} cannot be read as limits: {error}") from None
        if not isinstance(content, dict):
            raise PlanError(f"{path} must hold a mapping such as 'kl_nats: 0.6'")
    named: set[str] = set()
    for one in given:
        name, separator, value = (word.strip() for word in one.partition("="))
        if not separator:
            raise PlanError(f"--limit {one!r} is not of the form name=value, such as kl_nats=0.6")
        if name in named:
            raise PlanError(f"--limit names {name} twice; keep one")
        named.add(name)
        try:
            content = {**content, name: load_yaml(value)}
        except ValueError as error:
            raise PlanError(f"--limit {one!r}: the value is not YAML: {error}") from None
    try:
        return CompareLimits.model_validate(content)
    except ValidationError as error:
        raise plan_error(error, CompareLimits, "limits") from None


def _runs(base: ModelSource, other: ModelSource) -> tuple[Path, Path] | None:
    """Return the folders of two runs; None of two models."""
    folders = [None if isinstance(source, tuple) else local(source) for source in (base, other)]
    runs = [folder for folder in folders if folder is not None and holds_run(folder)]
    if not runs:
        return None
    if len(runs) == 1:
        names = [source_name(source) if isinstance(source, tuple) else str(source) for source in (base, other)]
        run, model = names if runs[0] is folders[0] else names[::-1]
        raise PlanError(
            f"{run} is a run, and {model} is none; give two runs, or two models: those of a run lie in "
            f"{run}/students/<size>"
        )
    return runs[0], runs[1]


def _of_models(
    base: Checkpoint,
    other: Checkpoint,
    text: str | Path,
    settings: TextSettings,
    limits: CompareLimits,
    display: Display,
) -> list[Check]:
    checks = [_same_tokenizer(base, other), _same_template(base, other)]
    sizes = float(base.num_parameters), float(other.num_parameters)
    checks.append(Check("parameters_ratio", sizes[1] / sizes[0], limits.parameters_ratio, "at most", *sizes))
    if checks[0].passes:
        with display.stage("text", "loss, KL and greedy continuations") as progress:
            parts = read_whole_text([base, other], text, settings).parts
            first, second = (load_and_tell(one, role, display) for one, role in ((base, "base"), (other, "other")))
            losses = [
                validate_all(model, parts, OnlineTeacher(first), progress if model is second else silent)
                for model in (first, second)
            ]
            written = [continuations(model, parts[0]) for model in (first, second)]
            del first, second
            release_memory()
        checks += _on_text(losses, written, limits)
    else:
        checks += [
            Check("kl_nats", None, limits.kl_nats),
            Check("loss_increase_nats", None, limits.loss_increase_nats),
            Check("agreement_share", None, limits.agreement_share, "at least"),
        ]
    return checks


def _same_tokenizer(base: Checkpoint, other: Checkpoint) -> Check:
    first, second = (Vocabulary.of(each.path, "").ids for each in (base, other))
    different = len({token for token, _ in first.items() ^ second.items()})
    sizes = float(base.architecture.vocab_size), float(other.architecture.vocab_size)
    words = f"{different} tokens are missing or have other ids" if different else "the same"
    return Check("tokenizer", float(different), 0.0, "at most", *sizes, words=words)


def _same_template(base: Checkpoint, other: Checkpoint) -> Check:
    first, second = (
        AutoTokenizer.from_pretrained(each.path, trust_remote_code=False).chat_template for each in (base, other)
    )
    same = first == second
    return Check("chat_template", float(not same), 0.0, words="the same" if same else "another, or only one has one")


def _on_text(losses: Sequence[Losses], written: Sequence[list[list[int]]], limits: CompareLimits) -> Iterator[Check]:
    base, other = losses
    yield Check("kl_nats", other.kl_nats, limits.kl_nats)
    nats = (base.loss_nats, other.loss_nats)
    yield Check("loss_increase_nats", nats[1] - nats[0], limits.loss_increase_nats, "at most", *nats)
    lengths = [len(own) for own in written[0]]
    shares = [same / length for same, length in zip(agreement(written[1], written[0]), lengths, strict=True)]
    yield Check("agreement_share", fmean(shares), limits.agreement_share, "at least")


def _speed_of_models(
    base: Checkpoint, other: Checkpoint, evaluation: EvaluationSettings, limits: CompareLimits, display: Display
) -> Iterator[Check]:
    if not limits.asks_for_speed:
        return
    with display.stage("speed", "timed in turns"):
        first, second = measure_speed(base.path, evaluation), measure_speed(other.path, evaluation, base.path)
    for phase in ("prefill", "decode"):
        name, column = f"{phase}_speedup", f"{phase}_tokens_per_second"
        speeds = getattr(first, column), getattr(second, column)
        yield Check(name, getattr(second, name), getattr(limits, name), "at least", *speeds)
    memory = first.peak_memory_bytes, second.peak_memory_bytes
    yield Check("memory_ratio", _share(*memory), limits.memory_ratio, "at most", *memory)


def _tasks_of_models(
    base: Checkpoint,
    other: Checkpoint,
    evaluation: EvaluationSettings,
    seed: int,
    limits: CompareLimits,
    display: Display,
) -> Iterator[Check]:
    if not evaluation.tasks:
        return
    with display.stage("tasks", f"lm-eval: {', '.join(evaluation.tasks)}"):
        results = results_of_models(base.path, other.path, evaluation, seed)
    yield from checks_of_tasks(*results, limits.task_drop)


def _of_runs(base: Path, other: Path, limits: CompareLimits) -> Iterator[Check]:
    first, second = ({row["model"]: row for row in plain_rows(read_run(each).evaluations)} for each in (base, other))
    if not first.keys() - {"teacher"}:
        raise RunFolderError(f"{base} has evaluated no student yet, so none is held against it; let its build go on")
    for name in first:
        if name not in second:
            yield Check("evaluated", None, 0.0, model=name, words=f"{other} has no such member, or not yet")
            continue
        for column, limit in (("kl_nats", limits.kl_nats), ("loss_nats", limits.loss_increase_nats)):
            values = (first[name][column], second[name][column])
            yield Check(f"{column} rises by", _rise(*values), limit, "at most", *values, model=name)
        for column, least in (("prefill_speedup", limits.prefill_speedup), ("decode_speedup", limits.decode_speedup)):
            values = (first[name][column], second[name][column])
            yield Check(column, values[1], least, "at least", *values, model=name)
        most = (("num_parameters", limits.parameters_ratio), ("peak_memory_bytes", limits.memory_ratio))
        for column, limit in most:
            sizes = (first[name][column], second[name][column])
            yield Check(f"{column} over", _share(*sizes), limit, "at most", *sizes, model=name)


def _require_measured(limits: CompareLimits, text: object) -> None:
    """Refuse what two runs are not compared by, since they are not run again."""
    if text is not None:
        raise PlanError("two runs are compared by what they have measured; leave --text out")
    if limits.agreement_share is not None and "agreement_share" in limits.model_fields_set:
        raise PlanError("agreement_share is a limit on two models, and of two runs it is not measured; leave it out")


def _rise(base: float | None, other: float | None) -> float | None:
    return None if base is None or other is None else other - base


def _share(base: float | None, other: float | None) -> float | None:
    return None if not base or other is None else other / base


def _tasks_of_runs(base: Path, other: Path, limits: CompareLimits) -> Iterator[Check]:
    first, second = results_of_run(base), results_of_run(other)
    if limits.task_drop is not None and not first:
        raise PlanError(f"task_drop is a limit on lm-eval tasks, and {base} has answered none; leave it out")
    nothing = TaskResults((), ())
    for name, results in first.items():
        yield from checks_of_tasks(results, second.get(name, nothing), limits.task_drop, name)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _cell(text: str) -> str:
    return "".join(f"\\{one}" if one in r"\|`*_<>[]" else one for one in " ".join(text.split()))
