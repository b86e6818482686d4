"""The figure whose axes the reader picks: models and candidates by all measures."""

from collections.abc import Sequence
from typing import Any

from minitron_nas.reporting.figure_style import LOOKS, NEUTRAL, RUN_COLOURS, page_layout
from minitron_nas.reporting.measures import MEASURES, Measure, Point, run_points, told
from minitron_nas.reporting.run_record import RunRecord, best_trained
from minitron_nas.space.size import Size

_SHORT = ("screened", "trial")
_FRONTS = {"screened": "untrained", "trial": "trials"}
"""Whose front a point may be on; what has learned little is not joined with what has learned more."""


def explorer(runs: Sequence[tuple[str, RunRecord]]) -> dict[str, Any]:
    """Return what the figure draws as plain values: the measures that anything is known by, points, sizes, teachers.

    What it shows across at first is what the first run weighed beside KL, or parameters where it weighed nothing.

    Args:
        runs: Each with the name that tells it from the others; empty for a run alone.
    """
    named = [(name, run, run_points(run, len(runs))) for name, run in runs]
    everything = [point for _, _, points in named for point in points]
    measures = [one for one in MEASURES if any(point.values[one.name] is not None for point in everything)]
    groups, teachers, sizes = list[dict[str, Any]](), list[list[Any]](), list[dict[str, Any]]()
    for place, (name, run, points) in enumerate(named):
        colour = RUN_COLOURS[place % len(RUN_COLOURS)] if len(named) > 1 else None
        groups += [_group(name, kind, points, measures, colour) for kind in reversed(LOOKS)]
        teachers += [
            [_called(name, "teacher"), *told(each.values, measures)] for each in points if each.kind == "teacher"
        ]
        sizes += [size for size in _sizes(run) if size not in sizes]
    if len({tuple(values) for _, *values in teachers}) == 1:
        teachers = [["teacher", *teachers[0][1:]]]
    names = [measure.name for measure in measures]
    looked_at = sum(len(best_trained(run.trials)) + int(run.candidates["screen_kl_nats"].count()) for _, run in runs)
    return {
        "left_out": looked_at - sum(point.kind in _SHORT for point in everything),
        "across": _weighed(runs[0][1], names),
        "measures": [{"name": o.name, "title": o.title, "better": o.better, "log": o.log} for o in measures],
        "groups": [group for group in groups if group["points"]],
        "teachers": teachers,
        "sizes": [size for size in sizes if size["measure"] in names],
        "neutral": NEUTRAL,
        "layout": page_layout(460),
    }


def _group(
    run: str, kind: str, points: Sequence[Point], measures: Sequence[Measure], colour: str | None
) -> dict[str, Any]:
    """Return all points of one kind and how they look; a point is its name, its shape and what the measures say."""
    look, is_model = LOOKS[kind], kind not in _SHORT
    mine = [point for point in points if point.kind == kind]
    return {
        "name": _called(run, look.name),
        "colour": colour or look.colour,
        "symbol": look.symbol,
        "size": look.size,
        "front": _FRONTS.get(kind, "models"),
        "is_model": is_model,
        "labelled": kind == "student",
        "points": [
            [_called(run if is_model else "", point.name), point.shape, *told(point.values, measures)] for point in mine
        ],
    }


def _weighed(run: RunRecord, names: Sequence[str]) -> str:
    """The first objective of a search beside KL that is a measure."""
    objectives = (run.plan.get("search") or {}).get("objectives") or ()
    return next((name for name in objectives if name in names), "num_parameters")


def _called(run: str, name: str) -> str:
    return f"{run} {name}" if run else name


def _sizes(run: RunRecord) -> list[dict[str, Any]]:
    """Return each size as the band of parameters that its shapes may have, and as a line in its own unit."""
    found = list[dict[str, Any]]()
    for label, (low, high) in run.size_windows().items():
        size = Size.of_label(label)
        line = size.value if size.unit == "parameters" else None
        found.append({"measure": "num_parameters", "label": label, "low": low, "high": high, "line": line})
        if size.unit == "memory":
            limit = size.value / 1e9
            found.append({"measure": "memory_bytes", "label": label, "low": limit, "high": limit, "line": limit})
        elif size.is_speed:
            share = 1 / size.value
            measure = f"{size.unit}_share"
            found.append({"measure": measure, "label": label, "low": share, "high": share, "line": share})
    return found
