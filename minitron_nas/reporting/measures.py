"""By what models and candidates are compared, and every one of them as a point of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from minitron_nas.architecture.spec import SHAPE_FIELDS, shape_id
from minitron_nas.reporting.members import ReportedMember, list_members
from minitron_nas.reporting.run_record import RunRecord, best_trained, plain_rows
from minitron_nas.search.costing import Deployment

Values: TypeAlias = dict[str, float | None]

MAX_POINTS = 2_000
"""Trials, and candidates, of a page that become points: those of the front, then the nearest to the teacher."""

_TASK_METRICS = ("acc_norm,none", "acc,none", "exact_match,none", "f1,none")
_COUNTED = ("num_parameters", "kv_cache_bytes_per_token", "state_bytes_per_sequence")


@dataclass(frozen=True, slots=True)
class Measure:
    """What an axis may show.

    Attributes:
        name: Its key.
        title: Of the axis, with the unit.
        unit: What a value of the tables is divided by to be told in it.
        better: Which end is the better one.
        log: Whether a wide span of it is drawn on a logarithmic scale.
    """

    name: str
    title: str
    unit: float = 1.0
    better: Literal["low", "high"] = "low"
    log: bool = False


MEASURES = (
    Measure("num_parameters", "total parameters"),
    Measure("kl_nats", "KL to the teacher (nats)", log=True),
    Measure("loss_nats", "next-token loss (nats)"),
    Measure("memory_bytes", "memory of 16-bit weights and cache (GB)", unit=1e9),
    Measure("peak_memory_bytes", "peak memory, measured (GB)", unit=1e9),
    Measure("prefill_seconds", "time of a prompt, predicted (ms)", unit=1e-3),
    Measure("decode_seconds", "time of a new token, predicted (ms)", unit=1e-3),
    Measure("prefill_share", "time of a prompt, measured (times the teacher's)"),
    Measure("decode_share", "time of a new token, measured (times the teacher's)"),
    Measure("tasks", "mean of the tasks", better="high"),
)
"""In the order in which they are offered."""


@dataclass(frozen=True, slots=True)
class Point:
    """A model or candidate by all measures.

    Attributes:
        kind: Its role, or `trial` or `screened`.
        name: What it is called.
        shape: Its shape id.
        values: By the measures' names, None where not known.
    """

    kind: str
    name: str
    shape: str
    values: Values


def run_points(run: RunRecord, num_runs: int = 1) -> list[Point]:
    """Return the teacher and the other models, then trials by their best rung, then candidates that were screened.

    Args:
        run: The run.
        num_runs: Of the page, which share MAX_POINTS.
    """
    most = MAX_POINTS // num_runs
    tasks, costs = _task_means(run), _Costs(run)
    models = [_of_member(member, tasks.get(member.name), costs) for member in list_members(run)]
    return [*models, *_trials(run, most), *_screened(run, most)]


def _of_member(member: ReportedMember, tasks: float | None, costs: "_Costs") -> Point:
    names = ("num_parameters", "kl_nats", "loss_nats", "peak_memory_bytes")
    values: Values = dict.fromkeys(measure.name for measure in MEASURES)
    values |= {name: member.value(name) for name in names}
    values |= costs.of(member) | {"tasks": tasks}
    for phase in ("prefill", "decode"):
        speedup = member.ratio(f"{phase}_tokens_per_second")
        values[f"{phase}_share"] = 1 / speedup if speedup else None
    shape = shape_id(member.values) if member.value("num_hidden_layers") is not None else ""
    return Point(member.role, member.title, shape, values)


class _Costs:
    """What the shapes of models cost by the arithmetic, and the latency model, that candidates were weighed by."""

    def __init__(self, run: RunRecord) -> None:
        search = run.plan.get("search") or {}
        batch_size, context_tokens = search.get("batch_size"), search.get("context_tokens")
        self._deployment = Deployment(batch_size, context_tokens) if batch_size and context_tokens else None
        self._latency = run.latency

    def of(self, member: ReportedMember) -> Values:
        """Return memory and predicted seconds, as far as they are known."""
        found: Values = {}
        counted = {name: np.array([member.value(name)]) for name in _COUNTED if member.value(name) is not None}
        if self._deployment is not None and len(counted) == len(_COUNTED):
            found["memory_bytes"] = int(self._deployment.memory_bytes(counted)[0])
        sizes = {name: member.value(name) for name in SHAPE_FIELDS}
        known = {name: np.array([size]) for name, size in sizes.items() if size is not None}
        if self._latency is not None and "num_hidden_layers" in known:
            found |= {name: float(seconds[0]) for name, seconds in self._latency.predict(known).items()}
        return found


def _trials(run: RunRecord, most: int) -> list[Point]:
    costs = ["size", "candidate", "memory_bytes", "prefill_seconds", "decode_seconds"]
    tried = run.candidates["candidate"].isin(run.trials["candidate"])
    known = run.candidates.loc[tried, costs].drop_duplicates(["size", "candidate"])
    rows = best_trained(run.trials).merge(known, how="left", on=["size", "candidate"])
    return _points("trial", rows.sort_values("kl_nats", kind="stable").head(most))


def _screened(run: RunRecord, most: int) -> list[Point]:
    rows = run.candidates.dropna(subset=["screen_kl_nats"])
    if len(rows) > most:
        order = rows.assign(behind=rows["on_front"] != True)  # noqa: E712  # null is not on it
        rows = rows.loc[order.sort_values(["behind", "screen_kl_nats"], kind="stable").index[:most]]
    return _points("screened", rows.assign(kl_nats=rows["screen_kl_nats"], loss_nats=rows["screen_loss_nats"]))


def _points(kind: str, rows: pd.DataFrame) -> list[Point]:
    return [
        Point(kind, str(row["candidate"]), "", {measure.name: row.get(measure.name) for measure in MEASURES})
        for row in plain_rows(rows)
    ]


def _task_means(run: RunRecord) -> Mapping[str, float]:
    """Return each model's mean over the tasks that all models were asked, by one metric of each."""
    known = run.benchmarks[run.benchmarks["metric"].isin(_TASK_METRICS)].dropna(subset=["value"])
    values = dict[str, list[float]]()
    for _, rows in known.groupby("task", sort=True):
        metric = next(name for name in _TASK_METRICS if (rows["metric"] == name).any())
        mine = rows[rows["metric"] == metric].drop_duplicates("model")
        if len(mine) == known["model"].nunique():
            for model, value in zip(mine["model"], mine["value"], strict=True):
                values.setdefault(str(model), []).append(float(value))
    return {model: fmean(found) for model, found in values.items()}


def told(values: Values, measures: Sequence[Measure]) -> list[Any]:
    """Return values in the order and units of measures, with the digits that a figure can show.

    Args:
        values: Of a point.
        measures: Some of the measures.
    """
    found = [(values.get(measure.name), measure.unit) for measure in measures]
    return [None if value is None else float(f"{value / unit:.6g}") for value, unit in found]
