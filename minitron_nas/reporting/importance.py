"""Maps of importance: what the scores of a model say of its layers, heads, neurons and channels, in few numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]

MAX_BINS = 96
"""Columns of a map; what has more parts is averaged over as many neighbours as needed."""

_AXES = {
    "layers": "layers",
    "heads": "query heads",
    "kv_groups": "key-value groups",
    "experts": "experts",
    "neurons": "FFN neurons",
    "expert_neurons": "neurons of experts",
    "shared_neurons": "neurons beside experts",
    "conv_channels": "channels of convolutions",
    "wide_neurons": "FFN neurons of layers without keys of their own",
    "mamba_heads": "heads of Mamba mixers",
    "mamba_channels": "channels of Mamba heads",
    "hidden": "channels",
}


@dataclass(frozen=True, slots=True)
class ImportanceMap:
    """The scores of one axis.

    Attributes:
        axis: Its name in the table of scores.
        title: Its parts, in words.
        values: (num_layers, num_bins), or one row where the axis has none for each layer: scores over the mean of
            those that they are comparable with.
        parts_per_bin: How many parts are averaged.
    """

    axis: str
    title: str
    values: Values
    parts_per_bin: int


def importance_maps(scores: Mapping[str, Path]) -> dict[str, list[ImportanceMap]]:
    """Return the maps of each model that was scored, by its name.

    Args:
        scores: Their tables.
    """
    return {name: _maps(pd.read_parquet(path)) for name, path in scores.items()}


def _maps(scores: pd.DataFrame) -> list[ImportanceMap]:
    found, layers = [], range(_num_layers(scores))
    for axis, title in _AXES.items():
        mine = scores[scores["axis"] == axis]
        if len(mine):
            values, parts = _binned(mine, layers if mine["layer"].notna().any() else range(1))
            found.append(ImportanceMap(axis, title, values, parts))
    return found


def _num_layers(scores: pd.DataFrame) -> int:
    named = scores["layer"].where(scores["axis"] != "layers", scores["index"])
    return int(named.max()) + 1 if named.notna().any() else 1


def _binned(scores: pd.DataFrame, rows: range) -> tuple[Values, int]:
    """Return the mean relative score of each layer's bins, NaN where it has none, and how many parts a bin has."""
    layers = scores["layer"].fillna(0).astype(int)
    parts = -(-(int(scores["index"].max()) + 1) // MAX_BINS)
    experts = scores["expert"] if "expert" in scores else pd.Series(np.nan, index=scores.index)
    means = scores["score"].groupby([layers, experts.fillna(-1)]).transform("mean")
    relative = (scores["score"] / means.where(means != 0)).replace([np.inf, -np.inf], np.nan)
    binned = pd.DataFrame({"layer": layers, "bin": scores["index"] // parts, "score": relative})
    table = binned.pivot_table(index="layer", columns="bin", values="score", dropna=False)
    return table.reindex(rows).to_numpy(dtype=float), parts
