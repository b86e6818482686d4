"""Figures of how a run went, from points that are small enough to check by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from minitron_nas.reporting import search_figures as figures
from minitron_nas.reporting.importance import ImportanceMap
from minitron_nas.reporting.run_record import RunRecord, read_run
from minitron_nas.storage.ledger import Entry

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


def test_a_stage_stands_where_it_ran() -> None:
    stages = [
        Entry("teacher score", "", None, 1800.0, finished="2026-01-01T00:30:00+00:00"),
        Entry("94M distil", "", None, 3600.0, finished="2026-01-01T03:00:00+00:00"),
        Entry("study", "", None, 1.0),
    ]
    bars = {trace["name"]: trace for trace in figures.timeline_figure(stages)["data"]}
    assert (bars["prepare"]["base"], bars["prepare"]["x"]) == ([0.0], [0.5])
    assert (bars["train"]["y"], bars["train"]["base"], bars["train"]["x"]) == (["94M distil"], [2.0], [1.0])


def test_a_trial_that_failed_comes_first_and_is_marked(run: RunRecord) -> None:
    figure = figures.trial_time_figure(run.trials.assign(began_seconds=None), "94M")
    failed = run.trials[run.trials["status"] == "infeasible"]["candidate"].iloc[0]
    assert figure["layout"]["yaxis"]["categoryarray"][0] == failed
    first = figure["data"][0]
    assert first["text"][first["y"].index(failed)] == "\N{MULTIPLICATION SIGN}"
    assert first["x"][0] == pytest.approx(212 / 60, rel=1e-3)


def test_trials_stand_where_they_ran_in_the_order_in_which_they_began(run: RunRecord) -> None:
    mine = run.trials[run.trials["size"] == "94M"]
    timed = mine.assign(began_seconds=[1e9 + 600 - 60 * place for place in range(len(mine))])
    figure = figures.trial_time_figure(timed, "94M")
    names = list(dict.fromkeys(timed.sort_values("began_seconds")["candidate"]))
    assert figure["layout"]["yaxis"]["categoryarray"] == names
    begins = {begin for trace in figure["data"] for begin in trace["base"]}
    assert begins == {float(minute) for minute in range(len(mine))}
    assert (
        "base"
        not in figures.trial_time_figure(timed.assign(began_seconds=[None, *[1e9] * (len(mine) - 1)]), "94M")["data"][0]
    )


@pytest.mark.parametrize("first", [0, 1])
def test_every_rung_of_a_trial_is_fainter_than_the_one_before(run: RunRecord, first: int) -> None:
    trials = run.trials.assign(rung=run.trials["rung"] - 1 + first)
    figure = figures.trial_time_figure(trials, "110M")
    assert [bar["marker"]["opacity"][0] for bar in figure["data"]] == [1, 0.78]


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


def test_figures_without_data_say_so(new_run: Path) -> None:
    run = read_run(new_run)
    drawn = [
        figures.timeline_figure(run.stages),
        figures.trial_time_figure(run.trials, "110M"),
        figures.parallel_figure(run.candidates, run.trials, "110M"),
    ]
    assert [figure["data"] for figure in drawn] == [[], [], []]
    assert all("no data yet" in figure["layout"]["annotations"][0]["text"] for figure in drawn)


def test_a_map_of_heads_is_drawn_by_powers_of_ten_and_a_row_as_bars() -> None:
    values = pd.DataFrame([[1.0, 0.1], [10.0, 1.0]]).to_numpy()
    (heat,) = figures.importance_figure(ImportanceMap("heads", "query heads", values, 1))["data"]
    assert (heat["type"], heat["z"]) == ("heatmap", [[0.0, -1.0], [1.0, 0.0]])
    (bars,) = figures.importance_figure(ImportanceMap("hidden", "channels", values[:1], 4))["data"]
    assert (bars["type"], bars["x"], bars["y"]) == ("bar", [0, 4], [1.0, 0.1])
