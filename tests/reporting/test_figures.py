"""The report's figures, from the synthetic run and from points small enough to check by hand."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from minitron_nas.reporting import figures
from minitron_nas.reporting.run_record import RunRecord, read_run


@pytest.fixture(scope="module")
def run(finished_run: Path) -> RunRecord:
    return read_run(finished_run)


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_every_figure_of_an_empty_run_says_that_there_is_no_data_yet(new_run: Path) -> None:
    run = read_run(new_run)
    drawn = [
        figures.speed_figure(run.evaluations),
        figures.curve_figure(run.curves, "110M"),
        figures.rung_figure(run.candidates, run.trials, "110M"),
    ]
    assert [figure.layout.annotations[0].text.partition(":")[0] for figure in drawn] == ["no data yet"] * 3
    assert not any(figure.data for figure in drawn)


def test_a_wide_span_of_kl_is_logarithmic_and_a_narrow_one_starts_at_zero(run: RunRecord) -> None:
    assert figures.curve_figure(run.curves, "94M").layout.yaxis.type == "log"
    narrow = figures.speed_figure(run.evaluations).layout.yaxis
    assert (narrow.type, narrow.range[0]) == (None, 0)


def test_the_curves_of_one_size_are_validation_with_markers_and_thin_training(run: RunRecord) -> None:
    curves = figures.curve_figure(run.curves, "94M")
    assert [(trace.name, trace.mode, len(trace.x)) for trace in curves.data][-2:] == [
        ("student, training", "lines", 40),
        ("student", "lines+markers", 11),
    ]
    assert len({trace.line.dash for trace in curves.data if "markers" in trace.mode}) == 3


def test_two_students_of_a_size_are_two_curves_with_one_entry_in_the_legend(run: RunRecord) -> None:
    mine = run.curves[(run.curves["size"] == "94M") & (run.curves["role"] == "student")]
    both = pd.concat([run.curves, mine.assign(model="94M-2", kl_nats=mine["kl_nats"] * 2)])
    validation = [each for each in figures.curve_figure(both, "94M").data if each.name == "student"]
    assert [trace.showlegend for trace in validation] == [True, False]
    assert list(validation[1].y) == [2 * kl for kl in validation[0].y]


def test_a_failed_trial_ends_in_a_cross_at_its_untrained_height(run: RunRecord) -> None:
    failed = traces(figures.rung_figure(run.candidates, run.trials, "94M"))["failed or out of memory"]
    assert list(failed.x)[:2] == [0, 1]
    assert failed.y[0] == failed.y[1]
    assert failed.marker.symbol[1] == "x"
    assert "OutOfMemoryError: tried to allocate 1.50 GiB" in failed.hovertext[1]


def test_the_chosen_trial_ends_in_a_diamond_after_the_last_rung(run: RunRecord) -> None:
    chosen = traces(figures.rung_figure(run.candidates, run.trials, "110M"))["chosen"]
    assert (list(chosen.x)[:3], chosen.marker.symbol[2]) == ([0, 1, 2], "diamond")
    assert list(chosen.y)[1:3] == pytest.approx([0.671, 0.402])


def test_rungs_are_labelled_with_their_tokens(run: RunRecord) -> None:
    axis = figures.rung_figure(run.candidates, run.trials, "110M").layout.xaxis
    assert list(axis.ticktext) == ["screened", "rung 1<br>1M tokens", "rung 2<br>4M tokens"]


def test_the_speed_figure_draws_what_was_measured_in_turns_with_the_teacher(run: RunRecord) -> None:
    speed = figures.speed_figure(run.evaluations)
    assert [shape.x0 for shape in speed.layout.shapes] == [1.0]
    assert list(traces(speed)["student"].text) == ["110M", "94M"]
    assert list(traces(speed)["student"].x) == pytest.approx([63.1 / 52.4, 71.8 / 52.4])


def test_a_tag_in_a_name_is_escaped_in_the_hover_text(run: RunRecord) -> None:
    evaluations = run.evaluations.assign(model="<b>|</b>")
    hover = traces(figures.speed_figure(evaluations))["student"].hovertext[0]
    assert hover.startswith("<b>&lt;b&gt;|&lt;/b&gt;</b><br>")
