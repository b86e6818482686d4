"""Figures of what was searched, from points that are small enough to check by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from minitron_nas.reporting import search_figures as figures
from minitron_nas.reporting.importance import ImportanceMap
from minitron_nas.reporting.run_record import RunRecord, read_run

SCREENED = pd.DataFrame(
    [("94M", 1, 10.0, 4.0), ("94M", 1, 20.0, 2.0), ("94M", 2, 10.0, 2.0), ("94M", 2, 20.0, 4.0)],
    columns=["size", "round", "memory_bytes", "screen_kl_nats"],
)


@pytest.fixture(scope="module")
def run(finished_run: Path) -> RunRecord:
    return read_run(finished_run)


def test_corners_of_the_box_dominate_nothing_and_its_best_point_all_of_it() -> None:
    points = SCREENED[["memory_bytes", "screen_kl_nats"]].to_numpy()
    assert figures.hypervolumes(points, [1, 2, 3, 4]) == [0, 0, 1, 1]


def test_the_hypervolume_of_a_staircase_is_the_sum_of_its_steps() -> None:
    points = np.array([(0.0, 4.0), (4.0, 4.0), (1.0, 2.0), (3.0, 1.0), (4.0, 0.0)])
    assert figures.hypervolumes(points, [2, 4]) == pytest.approx([0, (2 * 2 + 1 * 3) / 16])


def test_the_hypervolume_is_told_after_each_round() -> None:
    trace = figures.hypervolume_figure(SCREENED, "94M", "memory_bytes")["data"][0]
    assert (trace["x"], trace["y"]) == ([2, 4], [0.0, 1.0])
    assert figures.hypervolume_figure(SCREENED.head(2), "94M", "memory_bytes")["data"] == []


def test_lines_across_the_measures_run_from_the_least_to_the_greatest(run: RunRecord) -> None:
    figure = figures.parallel_figure(run.candidates, run.trials, "110M")
    looks = [(trace["name"], trace["line"]["dash"]) for trace in figure["data"]]
    assert looks == [("screened out", "solid"), ("stopped", "dot"), ("chosen", "solid")]
    heights = [height for trace in figure["data"] for height in trace["y"] if height is not None]
    assert (min(heights), max(heights)) == (0, 1)
    chosen = figure["data"][-1]
    names = [text.removeprefix("<br><br>") for text in figure["layout"]["xaxis"]["ticktext"]]
    assert chosen["y"][names.index("KL<br>trained")] == 0


def test_sizes_of_some_families_have_a_line_of_their_own(run: RunRecord) -> None:
    mixed = run.candidates.assign(mamba_num_heads=16, mamba_head_dim=64, num_experts=8)
    told = figures.parallel_figure(mixed, run.trials, "110M")["layout"]["xaxis"]["ticktext"]
    assert [text.removeprefix("<br><br>") for text in told][5:8] == ["experts", "Mamba<br>heads", "Mamba<br>channels"]


def test_a_figure_without_data_says_so(new_run: Path) -> None:
    run = read_run(new_run)
    figure = figures.parallel_figure(run.candidates, run.trials, "110M")
    assert figure["data"] == []
    assert "no data yet" in figure["layout"]["annotations"][0]["text"]


def test_a_map_of_heads_is_drawn_by_powers_of_ten_and_a_row_as_bars() -> None:
    values = pd.DataFrame([[1.0, 0.1], [10.0, 1.0]]).to_numpy()
    (heat,) = figures.importance_figure(ImportanceMap("heads", "query heads", values, 1))["data"]
    assert (heat["type"], heat["z"]) == ("heatmap", [[0.0, -1.0], [1.0, 0.0]])
    (bars,) = figures.importance_figure(ImportanceMap("hidden", "channels", values[:1], 4))["data"]
    assert (bars["type"], bars["x"], bars["y"]) == ("bar", [0, 4], [1.0, 0.1])
