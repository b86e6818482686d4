"""What the report says of the candidates next to the choice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from minitron_nas.reporting.html import render_report
from minitron_nas.reporting.neighbours import Neighbour, neighbours
from minitron_nas.reporting.run_record import RunRecord, read_run

# name, untrained KL, memory, decode seconds, on the front, outcome
ROWS = [
    ("chosen", 0.40, 200, 2.0, True, "chosen"),
    ("lighter", 0.44, 180, 1.9, True, "stopped"),
    ("lightest", 0.60, 120, 1.5, True, "screened_out"),
    ("beaten", 0.50, 190, 2.1, False, "screened_out"),
    ("heavier", 0.38, 220, 2.2, True, "stopped"),
    ("unscreened", None, 199, 2.0, False, "not_sampled"),
]


@pytest.fixture
def run(finished_run: Path) -> RunRecord:
    return read_run(finished_run)


def with_front(run: RunRecord, **search: Any) -> RunRecord:
    columns = ["candidate", "screen_kl_nats", "memory_bytes", "decode_seconds", "on_front", "outcome"]
    front = pd.DataFrame(ROWS, columns=columns).assign(size="110M")
    return replace(run, candidates=front.reindex(columns=run.candidates.columns), plan={**run.plan, "search": search})


def test_the_next_lighter_and_the_next_heavier_point_of_the_front_are_told(run: RunRecord) -> None:
    lighter, heavier = neighbours(with_front(run), "110M")
    assert lighter == Neighbour("lighter", "memory_bytes", 0.44, pytest.approx(0.1), pytest.approx(-0.1))
    assert heavier == Neighbour("heavier", "memory_bytes", 0.38, pytest.approx(-0.05), pytest.approx(0.1))


def test_neighbours_are_told_in_what_the_search_weighs(run: RunRecord) -> None:
    found = neighbours(with_front(run, objectives=["kl", "decode_seconds", "memory_bytes"]), "110M")
    assert [(each.candidate, each.cost) for each in found] == [
        ("lighter", "decode_seconds"),
        ("heavier", "decode_seconds"),
        ("lighter", "memory_bytes"),
        ("heavier", "memory_bytes"),
    ]


def test_a_size_without_a_choice_has_no_neighbours(run: RunRecord) -> None:
    begun = with_front(run)
    begun.candidates["outcome"] = "not_sampled"
    assert neighbours(begun, "110M") == []
    assert neighbours(begun, "94M") == []


def test_the_report_shows_gain_and_loss(run: RunRecord) -> None:
    page = render_report(run)
    assert ('<table class="neighbours">' in page) == any(neighbours(run, size) for size in run.sizes())
    candidates = run.candidates.assign(memory_bytes=run.candidates["num_parameters"] * 2)
    page = render_report(replace(run, candidates=candidates))
    assert '<table class="neighbours">' in page
    assert "<td>memory</td>" in page
