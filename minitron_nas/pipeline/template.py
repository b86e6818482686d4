"""A plan to begin with, and what each of its settings says."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from minitron_nas.errors import PlanError
from minitron_nas.pipeline.listing import list_known
from minitron_nas.pipeline.plan import make_plan
from minitron_nas.storage.atomic import write_text

GIVEN = ("teacher", "sizes", "data")

OFFERED = (
    "space",
    "text.sequence_length",
    "text.calibration_samples",
    "text.validation_samples",
    "text.column",
    "text.split",
    "text.max_epochs",
    "importance.depth.criterion",
    "importance.depth.mode",
    "search.batch_size",
    "search.context_tokens",
    "search.latency",
    "search.extends",
    "search.max_screened",
    "search.num_finalists",
    "search.num_rungs",
    "search.tokens",
    "distillation.tokens",
    "distillation.learning_rate",
    "distillation.batch_sequences",
    "distillation.micro_batch_sequences",
    "distillation.gradient_checkpointing",
    "distillation.loss",
    "distillation.teacher_signal",
    "distillation.deepspeed",
    "distillation.report_to",
    "correct",
    "kd_teacher",
    "start",
    "repair",
    "baselines",
    "evaluation.texts",
    "evaluation.tasks",
    "runner.kind",
    "runner.address",
    "runner.gpus_per_trial",
    "runner.num_processes",
    "card.license",
    "seed",
)
"""Settings that people change, in the order of the file; `minitron-nas ls settings` knows all."""

_WIDTH = 110


def write_template(path: Path, teacher: str, sizes: Sequence[str], data: Any) -> None:
    """Write a commented plan: what was given, and each setting that people change with its default.

    Args:
        path: The file; it must not exist.
        teacher: Where the teacher comes from.
        sizes: Total parameters of each student, as they were given.
        data: What is read.

    Raises:
        PlanError: If the file exists, or what was given is no plan.
    """
    given = {"teacher": teacher, "sizes": list(sizes), "data": data}
    make_plan(given)
    if path.exists():
        raise PlanError(f"{path} exists; choose another file, or remove it first")
    write_text(path, "\n".join(_lines(given)) + "\n")


def _lines(given: Mapping[str, Any]) -> Iterator[str]:
    rows = {row["name"]: row for row in list_known("settings")}
    yield "# For `minitron-nas build --plan FILE --out FOLDER`; `minitron-nas plan --plan FILE` says what it costs."
    yield "# What stands here but for the first three is the default; `minitron-nas ls settings` prints all settings."
    for name in GIVEN:
        yield ""
        yield from _setting(name, given[name], rows[name]["about"], "")
    group: tuple[str, ...] = ()
    for name in OFFERED:
        *groups, last = name.split(".")
        shared = next((i for i, (a, b) in enumerate(zip(group, groups, strict=False)) if a != b), None)
        shared = min(len(group), len(groups)) if shared is None else shared
        if not shared:
            yield ""
        for depth in range(shared, len(groups)):
            yield f"{'  ' * depth}{groups[depth]}:"
        group = tuple(groups)
        yield from _setting(last, rows[name]["default"], rows[name]["about"], "  " * len(groups))


def _setting(name: str, value: Any, said: str, indent: str) -> Iterator[str]:
    yield from textwrap.wrap(
        _first_sentence(said), _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )
    written = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    yield f"{indent}{name}: {written.splitlines()[0]}"


def _first_sentence(said: str) -> str:
    """Return what stands before the first full stop that ends a sentence; the default stands in the file itself."""
    return said.partition(" Default: ")[0].partition(". ")[0].rstrip(".") + "."
