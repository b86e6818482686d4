"""Figures of what was searched, as the plain values that plotly.js reads: hypervolume, shapes, axes, importance."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from minitron_nas.reporting import numerals
from minitron_nas.reporting.axis_shares import AxisShares
from minitron_nas.reporting.figure_style import BLUE, FATES, NEUTRAL, ORANGE, Look, page_layout
from minitron_nas.reporting.importance import ImportanceMap
from minitron_nas.reporting.run_record import best_trained, plain_rows
from minitron_nas.search.pareto import pareto_front

Figure: TypeAlias = dict[str, Any]

MAX_LINES = 100
"""Shapes that are drawn as lines of a figure."""

MAX_ROUNDS = 100
"""After which the hypervolume is told; of more, some that lie evenly and the last."""

_FEW_PARTS = 12
"""Of a map, which are numbered one by one."""

_AXES = {
    "num_hidden_layers": "layers",
    "hidden_size": "channels",
    "intermediate_size": "neurons",
    "num_attention_heads": "heads",
    "num_key_value_heads": "KV<br>groups",
    "num_experts": "experts",
    "moe_intermediate_size": "expert<br>neurons",
    "shared_expert_intermediate_size": "shared<br>neurons",
    "mamba_num_heads": "Mamba<br>heads",
    "mamba_head_dim": "Mamba<br>channels",
    "num_parameters": "param-<br>eters",
    "memory_bytes": "memory",
    "screen_kl_nats": "KL un-<br>trained",
    "trained_kl_nats": "KL<br>trained",
}
_WRITE = {
    "num_parameters": numerals.count,
    "memory_bytes": numerals.memory,
    "screen_kl_nats": numerals.nats,
    "trained_kl_nats": numerals.nats,
}


def hypervolume_figure(candidates: pd.DataFrame, size: str, cost: str) -> Figure:
    """Draw how much of a box each round of the screening has come to dominate, in untrained KL and a cost.

    The box spans from the least to the greatest of both, of all that was screened.

    Args:
        candidates: Of the run.
        size: The label.
        cost: A column.
    """
    mine = candidates[candidates["size"] == size].dropna(subset=["screen_kl_nats", "round", cost])
    rounds = sorted(mine["round"].unique())
    if len(rounds) < 2:
        return empty("nothing to draw: the screening had fewer than two rounds")
    rounds = [*rounds[: -1 : -(-len(rounds) // MAX_ROUNDS)], *rounds[-1:]]
    mine = mine.sort_values("round", kind="stable")
    counts = mine["round"].searchsorted(rounds, side="right").tolist()
    history = hypervolumes(mine[[cost, "screen_kl_nats"]].to_numpy(dtype=float), counts)
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": counts,
        "y": [round(value, 5) for value in history],
        "line": {"color": BLUE, "shape": "hv"},
        "hovertext": [f"round {int(n)}: {v:.3f}" for n, v in zip(rounds, history, strict=True)],
        "hoverinfo": "text",
    }
    layout = laid_out(300, "candidates screened")
    layout["yaxis"] |= {"title": {"text": "dominated share"}, "rangemode": "tozero"}
    return {"data": [trace], "layout": layout}


def hypervolumes(points: "np.ndarray[Any, Any]", counts: Sequence[int]) -> list[float]:
    """Return the share of the box of all points that the first of them dominate, for each of several numbers of them.

    Args:
        points: (num_points, 2), both to be minimised.
        counts: How many points count, ascending.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    found, front = list[float](), scaled[:0]
    for begin, end in pairwise([0, *counts]):
        front = np.concatenate([front, scaled[begin:end]])
        front = front[pareto_front(front)]
        front = front[np.argsort(front[:, 0], kind="stable")]
        ends = np.append(front[1:, 0], 1.0)
        found.append(float(((ends - front[:, 0]) * (1 - front[:, 1])).sum()))
    return found


def parallel_figure(candidates: pd.DataFrame, trials: pd.DataFrame, size: str) -> Figure:
    """Draw the shapes of a size that were looked at as lines across their sizes, costs and KL, by what became of them.

    Args:
        candidates: Of the run.
        trials: Of the run.
        size: The label.
    """
    mine = candidates[(candidates["size"] == size) & (candidates["outcome"] != "not_sampled")]
    trained = best_trained(trials).rename(columns={"kl_nats": "trained_kl_nats"})
    mine = mine.merge(trained[["size", "candidate", "trained_kl_nats"]], how="left", on=["size", "candidate"])
    mine = mine.sort_values(["trained_kl_nats", "screen_kl_nats"], kind="stable").head(MAX_LINES)
    known = {name: title for name, title in _AXES.items() if mine[name].notna().any()}
    if len(mine) < 2:
        return empty(f"no data yet: fewer than two shapes were looked at for {size}")
    spans = {name: (float(mine[name].min()), float(mine[name].max())) for name in known}
    looks = {"screened_out": Look("screened out", NEUTRAL, "circle", 5, "solid", 0.8), **FATES}
    traces = []
    for fate, look in looks.items():
        rows = plain_rows(mine[mine["outcome"] == fate])
        if rows:
            traces.append(_strands(rows, spans, look))
    layout = laid_out(360, None)
    places = list(range(len(known)))
    layout["xaxis"] |= {  # every other name stands below the longest of its neighbours, so that they fit a narrow page
        "tickvals": places,
        "ticktext": ["<br><br>" * (at % 2) + title for at, title in enumerate(known.values())],
        "range": [-0.3, len(known) - 0.7],
        "showline": False,
        "tickangle": 0,
        "tickfont": {"size": 11},
    }
    layout["yaxis"] |= {"visible": False, "range": [-0.16, 1.16]}
    layout["shapes"] = [
        {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "layer": "below", "line": {"color": NEUTRAL, "width": 1}}
        for at in places
    ]
    layout["annotations"] = [
        {
            "x": at,
            "y": end,
            "text": _told(name, spans[name][end]),
            "showarrow": False,
            "yanchor": ("top", "bottom")[end],
            "yshift": (at % 2) * (-11, 11)[end],
            "font": {"size": 11},
        }
        for at, name in enumerate(known)
        for end in (0, 1)
    ]
    return {"data": traces, "layout": layout}


def axes_figure(shares: AxisShares | str) -> Figure:
    """Draw how much of the untrained KL of a size's shapes each of their axes explains, the greatest first.

    Args:
        shares: Of the size, or why there are none.
    """
    if isinstance(shares, str):
        return empty(f"nothing to draw: {shares}")
    traces = []
    for rises, title, colour in ((False, "more of it, lower KL", BLUE), (True, "more of it, higher KL", ORANGE)):
        mine = [axis for axis in shares.axes if axis.rises == rises]
        if mine:
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": title,
                    "y": [axis_name(axis.name) for axis in mine],
                    "x": [round(axis.share, 4) for axis in mine],
                    "marker": {"color": colour, "pattern": {"shape": "/" if rises else ""}},
                    "hovertext": [f"{axis_name(axis.name)}: {axis.share:.1%}, {title}" for axis in mine],
                    "hoverinfo": "text",
                }
            )
    layout = laid_out(100 + 26 * len(shares.axes), "share of the variation of log KL")
    names = [axis_name(axis.name) for axis in shares.axes]
    layout["xaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    layout["yaxis"] |= {"categoryorder": "array", "categoryarray": names, "autorange": "reversed"}
    return {"data": traces, "layout": layout | {"barmode": "overlay", "bargap": 0.3, "showlegend": True}}


def axis_name(name: str) -> str:
    """Return what an axis of shapes is called in figures, on one line.

    Args:
        name: The axis, in Hugging Face's words.
    """
    return _AXES[name].replace("<br>", " ")


def importance_figure(found: ImportanceMap) -> Figure:
    """Draw one axis of a model's scores: bars where each layer has one number, or all share a ranking; else a map.

    Args:
        found: The map.
    """
    values = np.round(found.values, 3)
    if 1 in values.shape or found.axis == "layers":
        flat = values.ravel()
        trace: Figure = {"type": "bar", "y": _plain(flat), "marker": {"color": BLUE}, "hoverinfo": "x+y"}
        layout = laid_out(260, found.title if found.axis != "layers" else "layer")
        layout["yaxis"] |= {"title": {"text": "score over the mean"}}
        trace["x"] = [found.parts_per_bin * at for at in range(len(flat))]
        return {"data": [trace], "layout": layout}
    logs = np.log10(np.maximum(found.values, 1e-3))
    bound = round(min(max(float(np.nanquantile(np.abs(logs), 0.98)), 0.3), 1.5), 1)
    most = f"{10**bound:.2g}"
    trace = {
        "type": "heatmap",
        "z": [_plain(row) for row in np.round(logs, 2)],
        "x": [found.parts_per_bin * at for at in range(values.shape[1])],
        "colorscale": "Cividis",
        "zmin": -bound,
        "zmax": bound,
        "hovertemplate": "layer %{y}, from %{x}: 10^%{z} of the mean<extra></extra>",
        "colorbar": {
            "thickness": 10,
            "tickvals": [-bound, 0, bound],
            "ticktext": [f"1/{most}", "mean", f"{most}\N{MULTIPLICATION SIGN}"],
        },
    }
    layout = laid_out(300, found.title)
    if values.shape[1] <= _FEW_PARTS:
        layout["xaxis"] |= {"tick0": 0, "dtick": 1}
    layout["yaxis"] |= {"title": {"text": "layer"}}
    return {"data": [trace], "layout": layout}


def empty(note: str) -> Figure:
    """Return a figure that only says why there is nothing to draw."""
    layout = page_layout(90)
    layout["xaxis"] |= {"visible": False}
    layout["yaxis"] |= {"visible": False}
    layout["annotations"] = [
        {"text": escape(note), "x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False}
    ]
    return {"data": [], "layout": layout}


def laid_out(height: int, across: str | None) -> Figure:
    """Return the layout of a figure.

    Args:
        height: In pixels.
        across: The title of the axis across; None without one.
    """
    layout = page_layout(height)
    if across is not None:
        layout["xaxis"] |= {"title": {"text": across}}
    return layout


def _strands(rows: Sequence[dict[str, Any]], spans: dict[str, tuple[float, float]], look: Look) -> Figure:
    """Draw several shapes as one trace with gaps."""
    across, up, texts = list[int | None](), list[float | None](), list[str | None]()
    for row in rows:
        for at, (name, (low, high)) in enumerate(spans.items()):
            value = row[name]
            across.append(at)
            up.append(None if value is None else round((value - low) / (high - low), 4) if high > low else 0.5)
            texts.append(f"{escape(str(row['candidate']))}<br>{_AXES[name]} {_told(name, value)}")
        across.append(None)
        up.append(None)
        texts.append(None)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": across,
        "y": up,
        "name": look.name,
        "line": {"color": look.colour, "width": look.width, "dash": look.dash},
        "opacity": 0.45 if look.name == "screened out" else 1,
        "hovertext": texts,
        "hoverinfo": "text",
    }


def _told(name: str, value: float | None) -> str:
    return _WRITE.get(name, numerals.whole)(value)


def _plain(values: "np.ndarray[Any, Any]") -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
