"""`write_report`: one self-contained HTML file that tells a run."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from html import unescape
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from minitron_nas.errors import RunFolderError
from minitron_nas.evaluation.turns import WIDE_SPREAD
from minitron_nas.reporting import figures, numerals, search_figures, sections, time_figures
from minitron_nas.reporting.axis_shares import AxisShares, axis_shares
from minitron_nas.reporting.cost import stage_costs
from minitron_nas.reporting.explorer import explorer
from minitron_nas.reporting.importance import ImportanceMap, importance_maps
from minitron_nas.reporting.latency import latency_evidence
from minitron_nas.reporting.members import about_untimed, comparison, incomparable, list_members, uncertain_speeds
from minitron_nas.reporting.neighbours import COST_NAMES, neighbours, weighed
from minitron_nas.reporting.run_record import RunRecord, read_run, read_runs
from minitron_nas.reporting.shapes import HEIGHT, WIDTH, drawings
from minitron_nas.reporting.teacher_name import display_name
from minitron_nas.reporting.texts import disagreements, member_texts, text_names
from minitron_nas.resources import resource
from minitron_nas.storage.atomic import write_text
from minitron_nas.storage.copies import local
from minitron_nas.storage.machine import require_writable
from minitron_nas.storage.remote import Store, as_uri
from minitron_nas.storage.run_folder import RunFolder

FIRST_ROWS = 40
"""Candidates that stand in the file as plain HTML, for readers without scripts and for print."""


def write_report(*run_folders: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run, finished or not, or of several beside each other, and return its path.

    Args:
        *run_folders: At least one; a URI is read from a copy.
        out: The file; without it, `report.html` in the run folder, or of several in the folder that holds them all. At
            a URI it is written there, too.

    Raises:
        RunFolderError: If a folder or its `plan.yaml` is missing, or the folder that holds several is a run itself, or
            several lie at URIs and no file is named.
        MachineError: If the file cannot be written, or a URI not be reached.
    """
    uris = [uri for folder in run_folders if (uri := as_uri(folder)) is not None]
    if len(run_folders) > 1 and uris and out is None:
        raise RunFolderError(f"no folder holds {uris[0]} and the others; say where their report goes with --out")
    folders = [local(folder) for folder in run_folders]
    whole = RunFolder(folders[0])
    if len(folders) > 1 or out is not None:
        runs = read_runs(folders)
        path = _beside(folders) if out is None else Path(out)
        write_text(path, render_report(*runs))
        return path
    with whole.telling() if whole.plan.exists() else nullcontext():  # without a plan there is nothing to hold up
        run = read_run(whole.path)
        require_writable(whole.path)
        write_text(whole.report, render_report(run))
    if uris:
        Store(uris[0]).put(whole.report, whole.report.name)
    return whole.report


def _beside(folders: Sequence[Path]) -> Path:
    """Return where the report of several runs lies."""
    parent = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    if RunFolder(parent).plan.exists():
        raise RunFolderError(f"{parent} is a run itself, whose report stands there; say where this one goes with --out")
    return parent / "report.html"


def render_report(*runs: RunRecord, live: str | None = None) -> str:
    """Return the report of one run, or of several, as HTML: no clock, no random id, so same runs give the same bytes.

    Args:
        *runs: At least one.
        live: What the runs were when they were read, of a page that asks its server whether they have gone on since.
    """
    several = len(runs) > 1
    parts = [_part(run, f"r{place}-" if several else "", len(runs)) for place, run in enumerate(runs, 1)]
    drawn = explorer([(run.name if several else "", run) for run in runs])
    content = {
        "parts": parts,
        "live": live is not None,
        "state": live,
        "title": ", ".join(run.name for run in runs) if several else parts[0]["title"],
        "kind": "Minitron families" if several else f"Minitron family \N{MIDDLE DOT} run {runs[0].name}",
        "heading": f"{len(runs)} runs" if several else parts[0]["heading"],
        "incomparable": incomparable(runs),
        "explorer": drawn,
        "explorer_json": _in_script(_compact(drawn)),
        "plotly": Markup(figures.plotly_script()),  # noqa: S704 - plotly's own file, not data
    }
    return _templates().get_template("report.html.j2").render(content) + "\n"


@functools.cache
def _templates() -> jinja2.Environment:
    """Return the templates, which take longer to compile than to fill."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resource("reports", "report.html.j2").parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["numerals"] = numerals
    environment.filters["words"] = sections.words
    return environment


def _part(run: RunRecord, prefix: str, num_runs: int) -> dict[str, Any]:
    """Return what the page tells of one run: what was asked and came out, warnings, sections.

    Args:
        run: The run.
        prefix: Of the names of its elements, that tells them from those of other runs on the page.
        num_runs: Of the page.
    """
    content = {**_content(run, num_runs), "prefix": prefix}
    written = {
        name: Markup(_templates().get_template(f"report_{name}.html.j2").render(content))  # noqa: S704 - escaped there
        for name in ("told", "warnings", "run")
    }
    sizes = ", ".join(content["sizes"]) or "no sizes yet"
    return {
        **written,
        "members": content["members"],
        "name": run.name if prefix else "",
        "prefix": prefix,
        "title": f"{run.name}: {sizes}",
        "heading": f"{content['teacher_name']} \N{RIGHTWARDS ARROW} {sizes}",
        "sections": _sections(content),
    }


def _sections(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the sections of a run that there are, with their headings."""
    return [
        (name, heading)
        for name, heading, there_is in (
            ("members", "Members", True),
            ("texts", "Held-out texts", content["by_text"]),
            ("shapes", "Shapes", content["drawings"]),
            ("distillation", "Distillation", True),
            ("tournament", "Tournament", True),
            ("speed", "Speed", True),
            ("candidates", "Candidates", True),
            ("excluded", "Left out", True),
            ("importance", "Importance", content["importance"]),
            ("cost", "Cost", content["costs"]),
            ("samples", "What they write", content["samples"]),
            ("benchmarks", "Benchmarks", content["benchmarks"]),
            ("aligned", "Aligned", content["aligned"]),
            ("provenance", "Provenance", True),
        )
        if there_is
    ]


def _content(run: RunRecord, num_runs: int) -> dict[str, Any]:
    members = list_members(run)
    sizes = run.sizes()
    rows = sections.candidate_rows(run, num_runs)
    columns = sections.candidate_columns(run)
    table = {"columns": columns, "rows": rows}
    models = [member.name for member in members]
    aligned = list(dict.fromkeys(str(row["model"]) for row in run.aligned_benchmarks))
    students, asked_models = [each.name for each in members if each.role == "student"], [*models, *aligned]
    importance = importance_maps(run.scores)
    shares = {size: axis_shares(run.candidates, size) for size in sizes}
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
        "untimed": about_untimed(members),
        "wide_spread": WIDE_SPREAD,
        "figures": _figures(run, shares, importance),
        "axis_shares": {size: found for size, found in shares.items() if isinstance(found, AxisShares)},
        "timed": {size: time_figures.knows_starts(run.trials[run.trials["size"] == size]) for size in sizes},
        "importance": {
            name: [(one.axis, one.title, one.parts_per_bin) for one in maps] for name, maps in importance.items()
        },
        "drawings": drawings(run, members),
        "has_mixers": bool(members[0].value("mamba_num_heads")),
        "drawing_size": (WIDTH, HEIGHT),
        "costs": stage_costs(run),
        "hypervolume_cost": COST_NAMES[weighed(run)[0]],
        "outcomes": {size: sections.outcome_counts(run.candidates, size) for size in sizes},
        "asked": sections.asked(run),
        "asked_of": {size: sections.asked_of(run, size) for size in sizes},
        "held_against": {size: sections.held_against(run.candidates, size) for size in sizes},
        "samples": sections.samples(run, models),
        "titles": {member.name: member.title for member in members},
        "generation": {size: sections.generation(run.trials, size) for size in sizes},
        "correlations": {size: sections.correlation_rows(run, size) for size in sizes},
        "rates": {size: sections.rate_rows(run, size) for size in sizes},
        "columns": columns,
        "shape_letters": sections.shape_letters(run),
        "first_rows": rows[:FIRST_ROWS],
        "num_rows": len(rows),
        "num_candidates": len(run.candidates),
        "candidate_json": _in_script(_compact(table)),
        "exclusions": sections.exclusion_rows(run),
        "aligned": sections.alignment_rows(run),
        "asked_models": asked_models,
        "benchmarks": sections.benchmark_table(run, asked_models),
        "held_against_others": {
            **{f"{name} against its baselines": sections.against_others(run, name) for name in students},
            **{f"{name} against what it was": sections.against_others(run, name) for name in aligned},
        },
        "checks": sections.checks(run),
    }


def _figures(
    run: RunRecord, shares: Mapping[str, AxisShares | str], importance: Mapping[str, Sequence[ImportanceMap]]
) -> dict[str, dict[str, Any]]:
    """Return each figure's JSON by name, and the note that stands in the place of one that draws nothing."""
    found = {"speed": figures.figure_values(figures.speed_figure(run.evaluations))}
    if run.stages:
        found["timeline"] = time_figures.timeline_figure(run.stages)
    for size, explained in shares.items():
        found[f"curves-{size}"] = figures.figure_values(figures.curve_figure(run.curves, size))
        found[f"rungs-{size}"] = figures.figure_values(figures.rung_figure(run.candidates, run.trials, size))
        found[f"times-{size}"] = time_figures.trial_time_figure(run.trials, size)
        found[f"hypervolume-{size}"] = search_figures.hypervolume_figure(run.candidates, size, weighed(run)[0])
        found[f"parallel-{size}"] = search_figures.parallel_figure(run.candidates, run.trials, size)
        found[f"axes-{size}"] = search_figures.axes_figure(explained)
    for name, maps in importance.items():
        found |= {f"importance-{name}-{one.axis}": search_figures.importance_figure(one) for one in maps}
    return {name: {"json": _in_script(_compact(figure)), "note": _note(figure)} for name, figure in found.items()}


def _note(figure: Mapping[str, Any]) -> str:
    """Return in words why a figure draws nothing; empty where it draws something."""
    if figure["data"]:
        return ""
    told = unescape(figure["layout"]["annotations"][0]["text"])
    return told[:1].upper() + told[1:]


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _in_script(text: str) -> Markup:
    """Return JSON as it may stand inside a `<script>` element."""
    escaped = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(escaped)  # noqa: S704 - nothing in it can end the script element
