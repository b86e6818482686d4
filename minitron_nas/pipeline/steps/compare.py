"""Two models, or two runs, held against each other: a gate for whoever ships a compressed model again and again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minitron_nas.errors import PlanError
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.execution.preemption import going_on
from minitron_nas.models.source import ModelSource, source_name
from minitron_nas.pipeline.display import Display, default_display
from minitron_nas.pipeline.steps.check import Check
from minitron_nas.pipeline.steps.limits import CompareLimits
from minitron_nas.pipeline.steps.model_checks import Measuring, checks_of_models
from minitron_nas.pipeline.steps.run_checks import checks_of_runs
from minitron_nas.pipeline.steps.task_checks import require_tasks
from minitron_nas.storage.atomic import whole_folder, write_text
from minitron_nas.storage.copies import local
from minitron_nas.storage.run_folder import holds_run, new_folder, require_new_folder
from minitron_nas.storage.schemas import COMPARISON
from minitron_nas.storage.tables import write_rows
from minitron_nas.text.settings import TextSettings


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

    Models are compared on a text: how they cut and write it, next-token loss, KL, greedy continuations; by what lies
    beside their weights, such as chat template and settings of generation; and, where a limit asks for it, by speed,
    memory and lm-eval tasks. That the second is no intact model is a check that fails. Runs are compared by what they
    have measured.

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
    with _making(folder):
        if runs := _runs(base, other):
            if text is not None:
                raise PlanError("two runs are compared by what they have measured; leave --text out")
            checks = list(checks_of_runs(*runs, limits))
        else:
            if limits.task_drop is not None and not evaluation.tasks:
                raise PlanError(
                    "task_drop is a limit on lm-eval tasks, and none is named; name some with evaluation.tasks"
                )
            if evaluation.tasks:
                require_tasks(evaluation)
            if text is None:
                raise PlanError("two models are compared on a text that neither has seen; name one with --text")
            measuring = Measuring(text, settings, evaluation, seed, limits, display)
            checks = list(checks_of_models(base, other, measuring))
        found = Comparison(source_name(base), source_name(other), tuple(checks))
        if folder is not None:
            with whole_folder(folder) as partial:
                write_rows(partial, COMPARISON, [check.to_row() for check in found.checks])
                write_text(partial / "comparison.md", found.to_markdown())
    return found


@contextmanager
def _making(folder: Path | None) -> Iterator[None]:
    """Hold a folder that is to be made, if there is one."""
    if folder is None:
        yield
        return
    with new_folder(folder), going_on(f"nothing was written to {folder}; the same command begins again"):
        yield


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


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _cell(text: str) -> str:
    return "".join(f"\\{one}" if one in r"\|`*_<>[]" else one for one in " ".join(text.split()))
