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


@pytest.fixture(scope="module")
def pareto(run: RunRecord) -> Any:
    return figures.pareto_figure(
        run.candidates, run.trials, run.evaluations, run.size_windows(), run.teacher["num_parameters"]
    )


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_every_figure_of_an_empty_run_says_that_there_is_no_data_yet(new_run: Path) -> None:
    run = read_run(new_run)
    drawn = [
        figures.pareto_figure(run.candidates, run.trials, run.evaluations, run.size_windows()),
        figures.speed_figure(run.evaluations),
        figures.curve_figure(run.curves, "110M"),
        figures.rung_figure(run.candidates, run.trials, "110M"),
    ]
    assert [figure.layout.annotations[0].text.partition(":")[0] for figure in drawn] == ["no data yet"] * 4
    assert not any(figure.data for figure in drawn)


def test_a_student_stands_at_its_parameters_and_trained_kl(pareto: Any) -> None:
    student = traces(pareto)["student"]
    assert list(zip(student.x, student.y, strict=True)) == [(108_855_360, 0.2137), (91_646_464, 0.3342)]


def test_the_pareto_figure_shows_every_kind_of_model_with_a_marker_of_its_own(pareto: Any) -> None:
    symbols = {name: trace.marker.symbol for name, trace in traces(pareto).items() if "markers" in trace.mode}
    assert symbols == {
        "candidate, untrained": "circle-open",
        "trial, best rung": "circle-open",
        "random-weights baseline": "x",
        "depth-only baseline": "triangle-down",
        "student": "diamond",
    }
    assert len(traces(pareto)["candidate, untrained"].x) == 16
    assert len(traces(pareto)["trial, best rung"].x) == 7


def test_the_trained_front_leaves_out_what_is_larger_and_no_better() -> None:
    columns = ("size", "candidate", "kl_nats", "num_parameters")
    rows = [("1k", "a", 0.5, 900), ("1k", "b", 0.6, 1000), ("1k", "c", 0.2, 1100)]
    trials = pd.DataFrame(rows, columns=columns)
    nothing = pd.DataFrame(columns=["screen_kl_nats", "kl_nats", "on_front", "role"])
    front = traces(figures.pareto_figure(nothing, trials, nothing, {}))["front, trained"]
    assert (list(front.x), list(front.y), front.line.shape) == ([900, 1100], [0.5, 0.2], "hv")


def test_each_size_has_a_line_in_the_band_of_its_tolerance_and_the_teacher_a_line(pareto: Any) -> None:
    spans = [(shape.x0, shape.x1) for shape in pareto.layout.shapes]
    assert spans == [
        (104_500_000, 115_500_000),
        (110_000_000, 110_000_000),
        (89_300_000, 98_700_000),
        (94_000_000, 94_000_000),
        (134_515_008, 134_515_008),
    ]


def test_hovering_names_the_model_and_its_shape(pareto: Any) -> None:
    hover = traces(pareto)["depth-only baseline"].hovertext[0]
    assert hover.startswith("<b>110M-depth-only</b><br>l23-h576-f1536-q9-k3<br>109,734,336 parameters<br>KL 0.298")


def test_a_wide_span_of_kl_is_logarithmic_and_a_narrow_one_starts_at_zero(run: RunRecord, pareto: Any) -> None:
    assert pareto.layout.yaxis.type == "log"
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
    assert list(axis.ticktext) == ["untrained", "rung 1<br>1M tokens", "rung 2<br>4M tokens"]


def test_the_speed_figure_draws_what_was_measured_in_turns_with_the_teacher(run: RunRecord) -> None:
    speed = figures.speed_figure(run.evaluations)
    assert [shape.x0 for shape in speed.layout.shapes] == [1.0]
    assert list(traces(speed)["student"].text) == ["110M", "94M"]
    assert list(traces(speed)["student"].x) == pytest.approx([63.1 / 52.4, 71.8 / 52.4])


def test_a_tag_in_a_name_is_escaped_in_the_hover_text(run: RunRecord) -> None:
    evaluations = run.evaluations.assign(model="<b>|</b>")
    hover = traces(figures.speed_figure(evaluations))["student"].hovertext[0]
    assert hover.startswith("<b>&lt;b&gt;|&lt;/b&gt;</b><br>")


def test_a_size_in_memory_is_a_band_without_a_line(run: RunRecord) -> None:
    windows = {"memory-300MB": (90_000_000, 110_000_000)}
    drawn = figures.pareto_figure(run.candidates, run.trials, run.evaluations, windows)
    assert [(shape.type, shape.x0, shape.x1) for shape in drawn.layout.shapes] == [("rect", 90_000_000, 110_000_000)]
    (label,) = drawn.layout.annotations
    assert (label.text, label.x) == ("memory-300MB", 90_000_000)
