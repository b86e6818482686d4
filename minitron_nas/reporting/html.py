"""`write_report`: one self-contained HTML file that tells a run."""

import functools
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from minitron_nas.evaluation.turns import WIDE_SPREAD
from minitron_nas.reporting import figures, numerals, sections
from minitron_nas.reporting.latency import latency_evidence
from minitron_nas.reporting.members import comparison, list_members, uncertain_speeds
from minitron_nas.reporting.neighbours import COST_NAMES, neighbours
from minitron_nas.reporting.run_record import RunRecord, read_run
from minitron_nas.reporting.teacher_name import display_name
from minitron_nas.reporting.texts import disagreements, member_texts, text_names
from minitron_nas.resources import resource
from minitron_nas.storage.atomic import write_text
from minitron_nas.storage.machine import require_writable
from minitron_nas.storage.run_folder import RunFolder

FIRST_ROWS = 40
"""Candidates that stand in the file as plain HTML, for readers without scripts and for print."""


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` into a run folder, finished or not, and return its path.

    Raises:
        RunFolderError: If the folder or its `plan.yaml` is missing.
        MachineError: If the folder cannot be written to.
    """
    folder = RunFolder(Path(run_folder))
    with folder.telling() if folder.plan.exists() else nullcontext():  # without a plan there is nothing to hold up
        run = read_run(folder.path)
        require_writable(folder.path)
        write_text(folder.report, render_report(run))
    return folder.report


def render_report(run: RunRecord) -> str:
    """Return the report as HTML: no clock, no random id, so the same run gives the same bytes."""
    return _template().render(_content(run)) + "\n"


@functools.cache
def _template() -> jinja2.Template:
    """Return the template, which takes longer to compile than to fill."""
    template = resource("reports", "report.html.j2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["numerals"] = numerals
    environment.filters["words"] = sections.words
    return environment.get_template(template.name)


def _content(run: RunRecord) -> dict[str, Any]:
    members = list_members(run)
    sizes = run.sizes()
    rows = sections.candidate_rows(run)
    table = {"columns": sections.CANDIDATE_COLUMNS, "rows": rows}
    models = [member.name for member in members]
    return {
        "run": run,
        "sizes": sizes,
        "members": members,
        "teacher": members[0],
        "teacher_name": display_name(run.teacher["source"]),
        "students": [member for member in members if member.role == "student"],
        "comparisons": {each.name: comparison(members, each.name) for each in members if each.role == "student"},
        "neighbours": {size: neighbours(run, size) for size in sizes},
        "cost_names": COST_NAMES,
        "latency": run.latency,
        "latency_evidence": latency_evidence(run.latency, members),
        "texts": text_names(run),
        "by_text": member_texts(run),
        "disagreements": disagreements(run, members),
        "missing": sections.missing_parts(run),
        "failures": sections.failures(run),
        "uncertain": uncertain_speeds(members),
        "wide_spread": WIDE_SPREAD,
        "figures": _figures(run, sizes, members[0].value("num_parameters")),
        "outcomes": {size: sections.outcome_counts(run.candidates, size) for size in sizes},
        "asked_of": {size: sections.asked_of(run, size) for size in sizes},
        "held_against": {size: sections.held_against(run.candidates, size) for size in sizes},
        "samples": sections.samples(run, models),
        "titles": {member.name: member.title for member in members},
        "generation": {size: sections.generation(run.trials, size) for size in sizes},
        "correlations": {size: sections.correlation_rows(run, size) for size in sizes},
        "rates": {size: sections.rate_rows(run, size) for size in sizes},
        "columns": sections.CANDIDATE_COLUMNS,
        "first_rows": rows[:FIRST_ROWS],
        "num_rows": len(rows),
        "num_candidates": len(run.candidates),
        "candidate_json": _in_script(json.dumps(table, separators=(",", ":"), allow_nan=False)),
        "exclusions": sections.exclusion_rows(run),
        "benchmarks": sections.benchmark_table(run, models),
        "checks": sections.checks(run),
        "plotly": Markup(figures.plotly_script()),  # noqa: S704 - plotly's own file, not data
    }


def _figures(run: RunRecord, sizes: list[str], teacher_parameters: int | None) -> dict[str, dict[str, Any]]:
    """Return each figure's JSON by name, and whether it draws anything but a note."""
    found = {
        "pareto": figures.pareto_figure(
            run.candidates, run.trials, run.evaluations, run.size_windows(), teacher_parameters
        ),
        "speed": figures.speed_figure(run.evaluations),
    }
    for size in sizes:
        found[f"curves-{size}"] = figures.curve_figure(run.curves, size)
        found[f"rungs-{size}"] = figures.rung_figure(run.candidates, run.trials, size)
    return {
        name: {"json": _in_script(figures.figure_json(figure)), "drawn": bool(figure.data)}
        for name, figure in found.items()
    }


def _in_script(text: str) -> Markup:
    """Return JSON as it may stand inside a `<script>` element."""
    escaped = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(escaped)  # noqa: S704 - nothing in it can end the script element
