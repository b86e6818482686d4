"""Held-out texts of several kinds in the report."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from minitron_nas.reporting.html import render_report
from minitron_nas.reporting.members import list_members
from minitron_nas.reporting.run_record import RunRecord, read_run
from minitron_nas.reporting.texts import disagreements, text_names
from minitron_nas.storage.schemas import TEXTS
from minitron_nas.storage.tables import write_rows


def member(size: str | None, model: str, near: float, far: float) -> list[dict[str, Any]]:
    about = {"size": size, "model": model, "look": "member"}
    return [
        {**about, "text": "data", "kl_nats": near, "loss_nats": 2.9 + near},
        {**about, "text": "wiki", "kl_nats": far, "loss_nats": 3.1 + far},
    ]


def trial(model: str, near: float, far: float) -> list[dict[str, Any]]:
    about = {"size": "110M", "model": model, "look": "rung 2", "loss_nats": None}
    return [{**about, "text": "data", "kl_nats": near}, {**about, "text": "wiki", "kl_nats": far}]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> RunRecord:
    folder = shutil.copytree(finished_run, tmp_path / "smollm2")
    candidates = read_run(folder).candidates
    mine = candidates[candidates["size"] == "110M"].set_index("candidate")["outcome"]
    chosen, other = (str(mine[mine == outcome].index[0]) for outcome in ("chosen", "stopped"))
    rows = [
        *member(None, "teacher", 0.0, 0.0),
        *member("110M", "110M", 0.20, 0.23),
        *member("110M", "110M-depth-only", 0.40, 0.20),
        *member("94M", "94M", 0.30, 0.31),
        *member("94M", "94M-depth-only", 0.40, 0.41),
        *trial(chosen, 0.5, 0.6),
        *trial(other, 0.6, 0.55),
    ]
    write_rows(folder, TEXTS, rows)
    return read_run(folder)


def test_a_baseline_or_trial_that_one_text_prefers_is_told(run: RunRecord) -> None:
    told = disagreements(run, list_members(run))
    assert told[0] == (
        "110M: on wiki the depth-only baseline is nearer to the teacher than the student (0.200 against 0.230 nats)"
    )
    assert told[1].startswith("110M: on wiki l")
    assert told[1].endswith("was nearer to the teacher after rung 2 than the choice (0.550 against 0.600 nats)")
    assert len(told) == 2


def test_the_report_has_each_member_on_each_text_and_says_where_they_disagree(run: RunRecord) -> None:
    page = render_report(run)
    assert "Held-out texts disagree" in page
    rows = page.split('id="texts"')[1].split("</section>")[0]
    assert rows.count("<tr") == 2 + 5
    assert "0.230" in rows
    assert "28.00" not in rows
    assert f"{2.718281828459045**3.33:.2f}" in rows  # exp(3.1 + 0.23)


def test_a_run_with_its_own_text_alone_has_no_such_section(finished_run: Path) -> None:
    run = read_run(finished_run)
    assert text_names(run) == []
    assert isinstance(run.texts, pd.DataFrame)
    assert disagreements(run, list_members(run)) == []
    page = render_report(run)
    assert 'id="texts"' not in page
    assert "Held-out texts" not in page
