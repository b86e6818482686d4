"""Figures of when stages and trials ran, as the plain values that plotly.js reads."""

from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import Any

import pandas as pd

from minitron_nas.reporting.figure_style import BLUE, GREEN, ORANGE, PURPLE
from minitron_nas.reporting.run_record import plain_rows
from minitron_nas.reporting.search_figures import Figure, empty, laid_out
from minitron_nas.storage.ledger import Entry

MAX_BARS = 40
"""Trials whose time is drawn."""


_KINDS = {"train": BLUE, "search": GREEN, "measure": ORANGE, "prepare": PURPLE}
_KIND_OF = {
    **dict.fromkeys(("distil", "correct"), "train"),
    **dict.fromkeys(("screen", "tournament", "rate"), "search"),
    **dict.fromkeys(("evaluate", "benchmark", "latency"), "measure"),
}


def timeline_figure(stages: Sequence[Entry]) -> Figure:
    """Draw when each stage ran, in hours since the first began.

    Args:
        stages: In the order in which they were finished.
    """
    ends = [(entry, datetime.fromisoformat(entry.finished).timestamp()) for entry in stages if entry.finished]
    ends = [(entry, end) for entry, end in ends if entry.seconds > 0]
    if not ends:
        return empty("no data yet: no stage has finished")
    begin = min(end - entry.seconds for entry, end in ends)
    traces = []
    for kind, colour in _KINDS.items():
        mine = [(entry, end) for entry, end in ends if _KIND_OF.get(entry.stage.rpartition(" ")[2], "prepare") == kind]
        if mine:
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": kind,
                    "y": [escape(entry.stage) for entry, _ in mine],
                    "base": [round((end - entry.seconds - begin) / 3600, 5) for entry, end in mine],
                    "x": [round(entry.seconds / 3600, 5) for entry, _ in mine],
                    "marker": {"color": colour},
                    "hovertext": [f"{escape(entry.stage)}<br>{entry.seconds:,.0f} s" for entry, _ in mine],
                    "hoverinfo": "text",
                }
            )
    layout = laid_out(90 + 18 * len(ends), "hours")
    order = [escape(entry.stage) for entry, _ in ends]
    layout["yaxis"] |= {
        "categoryorder": "array",
        "categoryarray": order,
        "autorange": "reversed",
        "tickfont": {"size": 11},
    }
    return {"data": traces, "layout": layout | {"barmode": "overlay", "bargap": 0.25}}


def trial_time_figure(trials: pd.DataFrame, size: str) -> Figure:
    """Draw when each trial of a size ran, rung by rung; where that is not known, how long, those that failed first.

    Args:
        trials: Of the run.
        size: The label.
    """
    mine = trials[(trials["size"] == size)].dropna(subset=["seconds"])
    if mine.empty:
        return empty(f"no data yet: no trial has run at {size}")
    lost = mine.assign(failed=mine["status"] != "completed")
    whole = lost.groupby("candidate", sort=True).agg({"seconds": "sum", "failed": "max", "began_seconds": "min"})
    order = whole.sort_values(["failed", "seconds"], ascending=False, kind="stable").head(MAX_BARS)
    drawn = mine[mine["candidate"].isin(order.index)]
    timed = knows_starts(drawn)
    if timed:
        order = order.sort_values("began_seconds", kind="stable")
    traces = []
    for place, rung in enumerate(sorted(drawn["rung"].unique())):
        found = plain_rows(drawn[drawn["rung"] == rung])
        failed = [row["status"] != "completed" for row in found]
        begin = drawn["began_seconds"].min()
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": f"rung {rung}",
                "y": [escape(str(row["candidate"])) for row in found],
                "x": [round(row["seconds"] / 60, 4) for row in found],
                **({"base": [round((row["began_seconds"] - begin) / 60, 4) for row in found]} if timed else {}),
                "marker": {
                    "color": [ORANGE if lost else BLUE for lost in failed],
                    "opacity": [max(0.35, 1 - 0.22 * place)] * len(found),
                },
                "text": ["\N{MULTIPLICATION SIGN}" if lost else "" for lost in failed],
                "textposition": "outside",
                "hovertext": [_trial_hover(row) for row in found],
                "hoverinfo": "text",
                "showlegend": False,
            }
        )
    layout = laid_out(90 + 18 * len(order), "minutes")
    names = [escape(str(name)) for name in order.index]
    layout["yaxis"] |= {
        "categoryorder": "array",
        "categoryarray": names,
        "autorange": "reversed",
        "tickfont": {"size": 11},
    }
    return {"data": traces, "layout": layout | {"barmode": "overlay" if timed else "stack", "bargap": 0.25}}


def knows_starts(trials: pd.DataFrame) -> bool:
    """Whether it is known of each rung of some trials when it began; runs of before do not say it.

    Args:
        trials: Of the run.
    """
    return bool(trials["began_seconds"].notna().all())


def _trial_hover(row: dict[str, Any]) -> str:
    ended = escape(str(row["error"] or row["status"]))
    return f"{escape(str(row['candidate']))}<br>rung {row['rung']}: {row['seconds']:,.0f} s<br>{ended}"
