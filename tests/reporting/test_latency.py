"""The latency model of a run in its report."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from minitron_nas.evaluation.latency import LatencyModel, PhaseModel, WholeModel
from minitron_nas.evaluation.latency_terms import Setting
from minitron_nas.reporting.html import render_report
from minitron_nas.reporting.latency import latency_evidence
from minitron_nas.reporting.members import list_members
from minitron_nas.reporting.run_record import RunRecord, read_run
from minitron_nas.storage.run_folder import RunFolder

SETTING = Setting(
    model_type="llama",
    vocab_size=49152,
    head_dim=64,
    num_experts_per_tok=0,
    neurons="intermediate_size",
    device="a device",
    dtype="bfloat16",
    threads=2,
    batch=1,
    prompt_tokens=512,
    context_tokens=512,
    torch="2.13.0",
    transformers="5.24.0",
)
SHAPE = {
    "num_hidden_layers": 10,
    "hidden_size": 100,
    "intermediate_size": 300,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> RunRecord:
    """A run whose latency model says that time is a second and a hundredth more a layer."""
    folder = shutil.copytree(finished_run, tmp_path / "smollm2")
    phase = PhaseModel(outside={"constant": 1.0}, layer={"constant": 0.01}, r_squared=0.971, layer_error=0.034)
    wholes = (
        WholeModel(shape=SHAPE, prefill_seconds=1.1, decode_seconds=1.0),
        WholeModel(shape=SHAPE, prefill_seconds=2.2, decode_seconds=1.1),
    )
    model = LatencyModel(setting=SETTING, prefill=phase, decode=phase, num_measurements=48, held_out=wholes)
    model.save(RunFolder(folder).latency)
    return read_run(folder)


def test_errors_on_whole_models_are_told_without_signs(run: RunRecord) -> None:
    prefill, decode = latency_evidence(run.latency, list_members(run))
    assert (prefill.phase, prefill.r_squared, prefill.layer_error) == ("prefill", 0.971, 0.034)
    assert (prefill.mean_error, prefill.largest_error) == (pytest.approx(0.25), pytest.approx(0.5))
    assert decode.mean_error == pytest.approx(np.mean([0.1, 0.0]))


def test_every_member_stands_with_the_speed_that_was_predicted_and_the_one_measured(run: RunRecord) -> None:
    members = list_members(run)
    told = {
        name: (predicted, measured) for name, predicted, measured in latency_evidence(run.latency, members)[0].members
    }
    depth = next(member for member in members if member.name == "94M-depth-only")
    assert told["94M depth-only baseline"] == (pytest.approx(1.3 / 1.18), depth.value("prefill_speedup"))
    assert set(told) == {member.title for member in members if member.role != "teacher"}


def test_the_report_shows_the_fit(run: RunRecord) -> None:
    page = render_report(run)
    assert "What predicted speeds in the search" in page
    assert "0.971" in page
    assert "a device, bfloat16, 2 threads, batch 1" in page


def test_a_run_without_a_latency_model_or_with_another_format_of_it_says_nothing(
    run: RunRecord, finished_run: Path, tmp_path: Path
) -> None:
    without = read_run(finished_run)
    assert latency_evidence(without.latency, list_members(without)) == []
    assert "What predicted speeds" not in render_report(without)
    RunFolder(tmp_path / "smollm2").latency.write_text('{"format": 9}')
    assert read_run(tmp_path / "smollm2").latency is None
    assert latency_evidence(replace(run, latency=None).latency, list_members(run)) == []


def test_a_model_that_the_plan_names_is_told_as_long_as_it_is_there(run: RunRecord, tmp_path: Path) -> None:
    folder, named = tmp_path / "smollm2", tmp_path / "named.json"
    RunFolder(folder).latency.rename(named)
    content = yaml.safe_load((folder / "plan.yaml").read_text())
    content["plan"]["search"] = {"latency": str(named)}
    (folder / "plan.yaml").write_text(yaml.safe_dump(content))
    assert read_run(folder).latency == run.latency
    named.unlink()
    assert read_run(folder).latency is None
