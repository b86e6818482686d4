"""Figures of when stages and trials ran, from few enough to check by hand."""

from pathlib import Path

import pytest

from minitron_nas.reporting import time_figures as figures
from minitron_nas.reporting.run_record import RunRecord, read_run
from minitron_nas.storage.ledger import Entry


@pytest.fixture(scope="module")
def run(finished_run: Path) -> RunRecord:
    return read_run(finished_run)


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


def test_figures_without_data_say_so(new_run: Path) -> None:
    run = read_run(new_run)
    drawn = [figures.timeline_figure(run.stages), figures.trial_time_figure(run.trials, "110M")]
    assert [figure["data"] for figure in drawn] == [[], []]
    assert all("no data yet" in figure["layout"]["annotations"][0]["text"] for figure in drawn)
