"""From the tables of a run to plotly figures; the only module that imports plotly."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
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
from minitron_nas.reporting.run_record import best_trained, plain_rows
from minitron_nas.search.pareto import pareto_front
from minitron_nas.space.size import Size

_OUTLINE = 1.5  # also how thick hollow markers are drawn
_TRAINED_ROLES = tuple(role for role in reversed(ROLES) if role != "teacher")  # the student is drawn on top


def plotly_script() -> str:
    """Return the plotly.js that draws these figures."""
    return str(get_plotlyjs())


def figure_json(figure: go.Figure) -> str:
    """Return a figure as the JSON that plotly.js reads."""
    return str(figure.to_json())


def pareto_figure(
    candidates: pd.DataFrame,
    trials: pd.DataFrame,
    evaluations: pd.DataFrame,
    size_windows: Mapping[str, tuple[int, int]],
    teacher_parameters: int | None = None,
) -> go.Figure:
    """Draw parameters against KL: untrained candidates, trials, students, baselines and fronts."""
    screened = plain_rows(candidates.dropna(subset=["screen_kl_nats"]))
    trained = plain_rows(best_trained(trials))
    models = [row for row in plain_rows(evaluations.dropna(subset=["kl_nats"])) if row["role"] != "teacher"]
    screened = [{**row, "kl_nats": row["screen_kl_nats"]} for row in screened]
    if not (screened or trained or models):
        return empty_figure("no data yet: no candidate was screened and no model trained")
    figure = _figure(480)
    _add_windows(figure, size_windows)
    _add_points(figure, screened, "screened", "num_parameters")
    _add_front(figure, [row for row in screened if row["on_front"]], "front, untrained", "dot")
    _add_front(figure, [*trained, *models], "front, trained", "solid")
    _add_points(figure, trained, "trial", "num_parameters")
    for role in _TRAINED_ROLES:
        _add_points(figure, [row for row in models if row["role"] == role], role, "num_parameters")
    shown = [row["num_parameters"] for row in (*screened, *trained, *models)]
    shown += [edge for window in size_windows.values() for edge in window]
    if teacher_parameters is not None:
        _mark_teacher(figure, teacher_parameters, "right")
        shown.append(teacher_parameters)
    figure.update_xaxes(title="total parameters", exponentformat="B", range=padded(shown))
    figure.update_yaxes(kl_axis(row["kl_nats"] for row in (*screened, *trained, *models)))
    return figure


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
    figure.update_xaxes(title="decode speed (times the teacher's, batch 1)", range=shown)
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
    """Draw each trial's KL from untrained through the rungs: chosen, stopped and failed."""
    mine = trials[trials["size"] == size].sort_values(["candidate", "rung"], kind="stable")
    if mine.empty:
        return empty_figure(f"no data yet: no trial has run at {size}")
    screened = candidates[candidates["size"] == size].set_index("candidate")["screen_kl_nats"].dropna()
    rows = plain_rows(mine)
    values = [row["kl_nats"] for row in rows if row["kl_nats"] is not None]
    values += [kl for name, kl in screened.items() if name in set(mine["candidate"])]
    lines: dict[str, list[list[Any]]] = {fate: [] for fate in FATES}
    for name, group in mine.groupby("candidate"):
        steps = plain_rows(group)
        start = screened.get(name)
        lines[_fate(steps, int(mine["rung"].max()))].append(_steps(str(name), steps, start, max(values, default=1.0)))
    figure = _figure(360)
    for fate, look in FATES.items():
        if lines[fate]:
            figure.add_trace(_slopes(lines[fate], look))
    figure.update_xaxes(rung_axis(rows, untrained=not screened.empty))
    figure.update_yaxes(kl_axis(values or [1.0]))
    return figure


def empty_figure(note: str) -> go.Figure:
    """Return a figure that only says why there is nothing to draw."""
    figure = _figure(90)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(text=escape(note), x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure


def _figure(height: int) -> go.Figure:
    return go.Figure(layout=page_layout(height))


def _add_windows(figure: go.Figure, size_windows: Mapping[str, tuple[int, int]]) -> None:
    """Draw each size as the band of parameters that its candidates may have, and as a line where it is told in them."""
    for label, (low, high) in size_windows.items():
        size, x = Size.of_label(label), float(low)
        figure.add_vrect(low, high, fillcolor=NEUTRAL, opacity=0.13, line_width=0, layer="below")
        if size.unit == "parameters":
            x = size.value
            figure.add_vline(x, line={"color": NEUTRAL, "width": 1, "dash": "dot"}, layer="below")
        place = {"x": x, "y": 1, "yref": "paper", "yanchor": "top", "xanchor": "left"}
        figure.add_annotation(text=escape(label), showarrow=False, **place)


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
            textposition="top right",
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


def _add_front(figure: go.Figure, rows: Sequence[Row], name: str, dash: str) -> None:
    """Draw the points that no other point beats in both parameters and KL, as a staircase."""
    best = pareto_front([(row["num_parameters"], row["kl_nats"]) for row in rows])
    front = sorted((row for row, on in zip(rows, best, strict=True) if on), key=lambda row: row["num_parameters"])
    if not front:
        return
    figure.add_trace(
        go.Scatter(
            x=[row["num_parameters"] for row in front],
            y=[row["kl_nats"] for row in front],
            name=name,
            mode="lines",
            line={"shape": "hv", "color": NEUTRAL, "width": 1.5, "dash": dash},
            hoverinfo="skip",
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


def _steps(name: str, steps: Sequence[Row], start: float | None, top: float) -> list[Any]:
    """Return (x, y, hover) of one trial; a failure stays at the height of the rung before."""
    points: list[Any] = []
    if start is not None:
        points.append((0, start, f"{escape(name)}<br>untrained KL {numerals.nats(start)} nats"))
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
