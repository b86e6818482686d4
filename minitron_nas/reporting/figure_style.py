"""How figures look: colours, markers, axes and hover text, as plain values.

Colours keep a contrast of at least 3 to 1 on white and on the dark page, and every meaning has a
marker shape or line style of its own besides. Text and grid take the page's colours through
`reports/report.css`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeAlias

from minitron_nas.architecture.spec import shape_id
from minitron_nas.reporting import numerals
from minitron_nas.reporting.members import ROLE_NAMES

Row: TypeAlias = Mapping[str, Any]

NEUTRAL, BLUE, ORANGE, PURPLE, GREEN = "#7d858c", "#2f7ed8", "#d9660a", "#a65fc0", "#2b8a5b"
RUN_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#b8458b", "#8a7a1f")
"""Of the runs of one page, in their order; more than these begin again."""

KL_TITLE = "KL to the teacher (nats"


@dataclass(frozen=True, slots=True)
class Look:
    """What one kind of point is called and how it is drawn."""

    name: str
    colour: str
    symbol: str
    size: int
    dash: str = "solid"
    width: float = 2


LOOKS = {
    "student": Look(ROLE_NAMES["student"], BLUE, "diamond", 13),
    "depth_only": Look(ROLE_NAMES["depth_only"], ORANGE, "triangle-down", 12, "dash"),
    "random_shape": Look(ROLE_NAMES["random_shape"], GREEN, "cross", 11, "dashdot"),
    "largest_shape": Look(ROLE_NAMES["largest_shape"], GREEN, "square", 10, "longdash"),
    "random_weights": Look(ROLE_NAMES["random_weights"], PURPLE, "x", 10, "dot"),
    "trial": Look("trial, best rung", BLUE, "circle-open", 9),
    "screened": Look("candidate, untrained", NEUTRAL, "circle-open", 5),
}
"""The points of the scatter figures and the lines of the curves."""

FATES = {
    "stopped": Look("stopped", NEUTRAL, "circle-open", 8, "dot", 1.2),
    "failed": Look("failed or out of memory", ORANGE, "x", 9, "dash", 1.2),
    "chosen": Look("chosen", BLUE, "diamond", 12, "solid", 2.5),
}
"""The lines of a tournament by how the trial ended, in drawing order."""


def page_layout(height: int) -> dict[str, Any]:
    """Return the layout that all figures share."""
    axis = {
        "showline": True,
        "linecolor": NEUTRAL,
        "ticks": "outside",
        "tickcolor": NEUTRAL,
        "zeroline": False,
    }
    return {
        "template": "none",
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": NEUTRAL},
        "margin": {"l": 8, "r": 16, "t": 24, "b": 8},
        "legend": {
            "orientation": "h",
            "yref": "container",
            "y": 1,
            "yanchor": "top",
            "x": 0,
            "traceorder": "reversed",
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": NEUTRAL, "activecolor": NEUTRAL},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "xaxis": {**axis, "showgrid": False, "automargin": True},
        "yaxis": {**axis, "automargin": True},
    }


def rung_axis(rows: Sequence[Row], screened: bool) -> dict[str, Any]:
    """Return the axis of a tournament: as screened, then each rung with its tokens."""
    tokens: dict[int, int] = {}
    for row in rows:
        tokens[row["rung"]] = max(row["tokens"], tokens.get(row["rung"], 0))
    names = {min(tokens) - 1: "screened"} if screened else {}
    names |= {rung: f"rung {rung}<br>{numerals.count(tokens[rung])} tokens" for rung in sorted(tokens)}
    ends = [min(names) - 0.2, max(names) + 0.2]
    return {"tickvals": list(names), "ticktext": list(names.values()), "range": ends}


def kl_axis(values: Iterable[float]) -> dict[str, Any]:
    """Return a KL axis: logarithmic, with ticks at 1, 2 and 5, if the values span a factor of four."""
    found = sorted(values)
    low, high = found[0], found[-1]
    if low <= 0 or high < 4 * low:
        return {"title": f"{KL_TITLE})", "range": [min(0.0, 1.12 * low), 1.12 * high]}
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    span = [math.log10(low / 1.25), math.log10(high * 1.25)]
    return {
        "title": f"{KL_TITLE}, log scale)",
        "type": "log",
        "range": span,
        "tickvals": ticks,
        "ticktext": [f"{t:g}" for t in ticks],
    }


def padded(values: Iterable[float]) -> list[float]:
    """Return the range of an axis that leaves 4 % free on both sides of its values."""
    found = sorted(values)
    free = 0.04 * (found[-1] - found[0]) or 0.04 * abs(found[0])
    return [found[0] - free, found[-1] + free]


def hover(row: Row, name: str) -> str:
    """Return the hover text of a model or candidate: name, shape id, parameters, KL, speed."""
    shape = row.get("candidate") or shape_id(row)
    kl = f"KL {numerals.nats(row['kl_nats'])} nats"
    lines = [
        f"<b>{escape(str(row.get('model') or name))}</b>",
        escape(shape),
        f"{numerals.whole(row['num_parameters'])} parameters",
        kl,
    ]
    if row.get("decode_tokens_per_second"):
        faster = f", {numerals.ratio(row['decode_speedup'])} the teacher" if row.get("decode_speedup") else ""
        lines.append(f"decodes {numerals.speed(row['decode_tokens_per_second'])} tokens/s{faster}")
    return "<br>".join(lines)
