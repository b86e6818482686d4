"""Maps of importance: scores over the mean of their peers, in few columns."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.reporting import importance
from minitron_nas.reporting.importance import ImportanceMap, importance_maps
from minitron_nas.storage.schemas import SCORES
from minitron_nas.storage.tables import write_rows


def maps(folder: Path, rows: list[tuple[str, int | None, int, float]], **more: Any) -> dict[str, ImportanceMap]:
    names = ("axis", "layer", "index", "score")
    write_rows(folder, SCORES, [{**dict(zip(names, row, strict=True)), **more} for row in rows])
    return {one.axis: one for one in importance_maps({"teacher": folder / SCORES.file_name})["teacher"]}


def test_heads_are_told_over_the_mean_of_their_layer(tmp_path: Path) -> None:
    found = maps(tmp_path, [("heads", 0, 0, 1.0), ("heads", 0, 1, 3.0), ("heads", 1, 0, 50.0), ("heads", 1, 1, 50.0)])
    assert found["heads"].values.tolist() == [[0.5, 1.5], [1.0, 1.0]]


def test_many_neurons_are_means_of_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "MAX_BINS", 2)
    found = maps(tmp_path, [("neurons", 0, at, score) for at, score in enumerate((1.0, 3.0, 4.0))])["neurons"]
    assert found.parts_per_bin == 2
    assert found.values[0] == pytest.approx([0.75, 1.5])


def test_layers_and_channels_are_one_row(tmp_path: Path) -> None:
    found = maps(tmp_path, [("layers", None, 0, 3.0), ("layers", None, 1, 1.0), ("hidden", None, 0, 7.0)])
    assert found["layers"].values.tolist() == [[1.5, 0.5]]
    assert found["hidden"].values.tolist() == [[1.0]]


def test_scores_that_are_all_zero_say_nothing(tmp_path: Path) -> None:
    found = maps(tmp_path, [("heads", 0, 0, 0.0), ("heads", 0, 1, 0.0)])
    assert np.isnan(found["heads"].values).all()


def test_every_axis_of_the_scores_has_a_map() -> None:
    assert {*importance._AXES} == {field.name for field in fields(ImportanceScores)}


def test_layers_without_an_axis_leave_a_gap(tmp_path: Path) -> None:
    rows = [("layers", None, layer, 1.0) for layer in range(4)]
    rows += [("mamba_heads", layer, head, 1.0 + head) for layer in (0, 2) for head in range(3)]
    rows += [("mamba_channels", 0, 0, 1.0), ("shared_neurons", 3, 0, 1.0)]
    found = maps(tmp_path, rows)
    assert found["mamba_heads"].values.tolist()[::2] == [[0.5, 1.0, 1.5]] * 2
    assert np.isnan(found["mamba_heads"].values[1::2]).all()
    assert [len(found[axis].values) for axis in ("mamba_heads", "mamba_channels", "shared_neurons")] == [4, 4, 4]
    assert np.isfinite(found["shared_neurons"].values).any(axis=1).tolist() == [False, False, False, True]
