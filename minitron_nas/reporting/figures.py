"""From the tables of a run to plotly figures; the only module that imports plotly."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from operator import itemgetter
from typing import Any

import pandas as pd
from plotly import graph_objects as go
from plotly.offline import get_plotlyjs

from minitron_nas.reporting import numerals
from minitron_nas.reporting.figure_style import (
    FATES,
    LOOKS,
    NEUTRAL,
    Look,
    Row,
    hover,
    kl_axis,
    padded,
    page_layout,
    rung_axis,
)
from minitron_nas.reporting.members import ROLES
from minitron_nas.reporting.run_record import plain_rows

_OUTLINE = 1.5  # also how thick hollow markers are drawn
MAX_TRIALS = 100
"""That are drawn as lines of a figure."""

_TRAINED_ROLES = tuple(role for role in reversed(ROLES) if role != "teacher")  # the student is drawn on top


def plotly_script() -> str:
    """Return the plotly.js that draws these figures."""
    return str(get_plotlyjs())


def figure_values(figure: go.Figure) -> dict[str, Any]:
    """Return a figure as the plain values that plotly.js reads."""
    found: dict[str, Any] = json.loads(figure.to_json())
    return found


def speed_figure(evaluations: pd.DataFrame) -> go.Figure:
    """Draw decode speed over the teacher's in the same rounds against KL, the teacher as a line."""
    rows = plain_rows(evaluations.dropna(subset=["decode_speedup", "kl_nats"]))
    models = [row for row in rows if row["role"] != "teacher"]
    if not models:
        return empty_figure("no data yet: no model's speed was measured")
    figure = _figure(420)
    for role in _TRAINED_ROLES:
        found = [
            {**row, "label": row["model"] if role == "student" else row["size"]}
            for row in models
            if row["role"] == role
        ]
        _add_points(figure, found, role, "decode_speedup")
    _mark_teacher(figure, 1.0, "left")
    shown = padded([1.0, *(row["decode_speedup"] for row in models)])
    figure.update_xaxes(title="decode speed (times the teacher's)", range=shown)
    figure.update_yaxes(kl_axis(row["kl_nats"] for row in models))
    return figure


def curve_figure(curves: pd.DataFrame, size: str) -> go.Figure:
    """Draw KL over the tokens of distillation for one size: validation marked, training thin."""
    rows = plain_rows(curves[curves["size"] == size].dropna(subset=["kl_nats"]).sort_values("tokens", kind="stable"))
    if not rows:
        return empty_figure(f"no data yet: nothing was distilled at {size}")
    figure = _figure(360)
    for role in _TRAINED_ROLES:
        for split in ("train", "validation"):
            own = [row for row in rows if row["role"] == role and row["split"] == split]
            for place, model in enumerate(dict.fromkeys(row["model"] for row in own)):
                found = [row for row in own if row["model"] == model]
                figure.add_trace(_curve(found, role, split, shown=place == 0))
    figure.update_xaxes(title="KD tokens", exponentformat="B", rangemode="tozero")
    figure.update_yaxes(kl_axis(row["kl_nats"] for row in rows))
    return figure


def rung_figure(candidates: pd.DataFrame, trials: pd.DataFrame, size: str) -> go.Figure:
    """Draw each trial's KL from its screening through the rungs: chosen, stopped and failed."""
    mine = trials[trials["size"] == size].sort_values(["candidate", "rung"], kind="stable")
    if mine.empty:
        return empty_figure(f"no data yet: no trial has run at {size}")
    screened = candidates[candidates["size"] == size].set_index("candidate")["screen_kl_nats"].dropna()
    first_rung, last_rung = int(mine["rung"].min()), int(mine["rung"].max())
    mine = mine[mine["candidate"].isin(_shown(mine))]
    screened = screened[screened.index.isin(mine["candidate"])]
    rows = plain_rows(mine)
    values = [row["kl_nats"] for row in rows if row["kl_nats"] is not None] + list(screened)
    lines: dict[str, list[list[Any]]] = {fate: [] for fate in FATES}
    for name, group in groupby(rows, key=itemgetter("candidate")):
        steps = list(group)
        start = None if name not in screened else (first_rung - 1, float(screened[name]))
        lines[_fate(steps, last_rung)].append(_steps(str(name), steps, start, max(values, default=1.0)))
    figure = _figure(360)
    for fate, look in FATES.items():
        if lines[fate]:
            figure.add_trace(_slopes(lines[fate], look))
    figure.update_xaxes(rung_axis(rows, screened=not screened.empty))
    figure.update_yaxes(kl_axis(values or [1.0]))
    return figure


def _shown(trials: pd.DataFrame) -> list[str]:
    """Return the trials of a size that are drawn: of many those that came furthest, and of these the best."""
    ends = trials.groupby("candidate", sort=True).agg({"rung": "max", "kl_nats": "last"})
    return list(ends.sort_values(["rung", "kl_nats"], ascending=[False, True], kind="stable").index[:MAX_TRIALS])


def empty_figure(note: str) -> go.Figure:
    """Return a figure that only says why there is nothing to draw."""
    figure = _figure(90)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(text=escape(note), x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure


def _figure(height: int) -> go.Figure:
    return go.Figure(layout=page_layout(height))


def _add_points(figure: go.Figure, rows: Sequence[Row], kind: str, x: str) -> None:
    """Add the rows as markers, with the text under `label` where a row has one."""
    if not rows:
        return
    look = LOOKS[kind]
    figure.add_trace(
        go.Scatter(
            x=[row[x] for row in rows],
            y=[row["kl_nats"] for row in rows],
            name=look.name,
            mode="markers+text",
            text=[escape(row.get("label", "")) for row in rows],
            textposition="bottom center" if kind == "student" else "top center",
            cliponaxis=False,
            marker={
                "color": look.colour,
                "symbol": look.symbol,
                "size": look.size,
                "line": {"width": _OUTLINE, "color": look.colour},
            },
            hovertext=[hover(row, look.name) for row in rows],
            hoverinfo="text",
        )
    )


def _mark_teacher(figure: go.Figure, x: float, side: str) -> None:
    """Draw the teacher as a line: its KL is 0, which a logarithmic axis does not have."""
    figure.add_vline(x, line={"color": NEUTRAL, "width": 1.5, "dash": "dash"})
    figure.add_annotation(
        x=x,
        y=0.02,
        yref="paper",
        yanchor="bottom",
        xanchor=side,
        text="teacher, KL 0",
        showarrow=False,
        textangle=-90,
    )


def _curve(rows: Sequence[Row], role: str, split: str, shown: bool) -> go.Scatter:
    look = LOOKS[role]
    validation = split == "validation"
    return go.Scatter(
        x=[row["tokens"] for row in rows],
        y=[row["kl_nats"] for row in rows],
        name=look.name if validation else f"{look.name}, training",
        legendgroup=role,
        showlegend=validation and shown,
        mode="lines+markers" if validation else "lines",
        opacity=1.0 if validation else 0.35,
        line={"color": look.colour, "width": look.width, "dash": look.dash if validation else "solid"},
        marker={"symbol": look.symbol, "size": 8},
        hovertext=[_curve_hover(row, look.name) for row in rows],
        hoverinfo="text",
    )


def _curve_hover(row: Row, name: str) -> str:
    kl = f"KL {numerals.nats(row['kl_nats'])} nats"
    return f"{name}, {row['split']}<br>{numerals.count(row['tokens'])} tokens<br>{kl}"


def _fate(steps: Sequence[Row], last_rung: int) -> str:
    last = steps[-1]
    if last["status"] != "completed":
        return "failed"
    return "chosen" if last["promoted"] and last["rung"] == last_rung else "stopped"


def _steps(name: str, steps: Sequence[Row], start: tuple[int, float] | None, top: float) -> list[Any]:
    """Return (x, y, hover) of one trial; a failure stays at the height of the rung before."""
    points: list[Any] = []
    if start is not None:
        points.append((*start, f"{escape(name)}<br>screened with a KL of {numerals.nats(start[1])} nats"))
    for row in steps:
        height, ended = row["kl_nats"], "went on" if row["promoted"] else "ended here"
        said = f"KL {numerals.nats(height)} nats, {ended}"
        if height is None:
            height = points[-1][1] if points else top
            said = escape(str(row["error"] or row["status"]))
        text = f"{escape(name)}<br>rung {row['rung']}, {numerals.count(row['tokens'])} tokens<br>{said}"
        points.append((row["rung"], height, text))
    return points


def _slopes(lines: Iterable[Sequence[Any]], look: Look) -> go.Scatter:
    """Draw several trials as one trace with gaps; only the last point carries the fate's marker."""
    points = [point for line in lines for point in (*line, (None, None, None))]
    ends = [following[0] is None for following in points[1:]] + [True]
    return go.Scatter(
        x=[point[0] for point in points],
        y=[point[1] for point in points],
        name=look.name,
        mode="lines+markers",
        line={"color": look.colour, "width": look.width, "dash": look.dash},
        marker={
            "symbol": [look.symbol if end else "circle" for end in ends],
            "size": [look.size if end else 6 for end in ends],
            "color": look.colour,
            "opacity": 1,
            "line": {"width": _OUTLINE, "color": look.colour},
        },
        hovertext=[point[2] for point in points],
        hoverinfo="text",
    )
