"""Sizes in memory and in speed, from the plan to the report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.errors import SpaceError
from minitron_nas.evaluation.latency import LatencyModel
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.dry_run import dry_run
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.plan import load_plan, make_plan, with_overrides
from minitron_nas.pipeline.stages import latency as latency_stage
from minitron_nas.storage.lineage import read_lineage
from minitron_nas.storage.schemas import CANDIDATES, EVALUATIONS
from minitron_nas.storage.tables import read_rows

AXES = {
    "num_hidden_layers": {"values": [3, 4, 5]},
    "hidden_size": {"values": [36, 42, 48]},
    "intermediate_size": {"min_fraction": 0.25, "step_fraction": 0.125, "multiple_of": 8},
    "num_attention_heads": {"values": [3, 6]},
    "num_key_value_heads": {"values": [1, 2]},
}
SPACE = {"axes": AXES, "tolerance": 0.05}
LEAST = ("search.num_rungs=0", "search.screen_sequences=2")
DEPLOYED = ("search.batch_size=2", "search.context_tokens=512")


@pytest.fixture(scope="module")
def in_memory(build: Callable[..., Family], tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A student that shall take 400 kB with two sequences of 512 tokens, and its depth-only baseline."""
    out = tmp_path_factory.mktemp("in-memory") / "run"
    return build(out, *LEAST, *DEPLOYED, "baselines=depth_only", sizes="memory=400kB", space=SPACE)


def test_every_candidate_of_a_size_in_memory_keeps_to_it_and_fills_most_of_it(in_memory: Family) -> None:
    rows = read_rows(in_memory.path, CANDIDATES)
    assert len(rows) > 5
    for row in rows:
        assert row["size"] == "memory-400kB"
        assert 360_000 <= row["memory_bytes"] <= 400_000
        assert row["memory_bytes"] == 2 * row["num_parameters"] + 1024 * row["kv_cache_bytes_per_token"]


def test_a_size_in_memory_is_a_folder_a_label_and_a_line_of_the_plan(in_memory: Family) -> None:
    assert load_plan(in_memory.path / "plan.yaml").to_dict()["sizes"] == ["memory=400kB"]
    (member,) = in_memory.members
    assert (member.name, member.path) == ("memory-400kB", in_memory.path / "students" / "memory-400kB")
    assert open_checkpoint(member.path).num_parameters == member.num_parameters
    assert read_lineage(member.path).size == "memory-400kB"
    stages = [json.loads(line)["stage"] for line in (in_memory.path / "ledger.jsonl").read_text().splitlines()]
    assert {"memory-400kB screen", "memory-400kB distil", "memory-400kB-depth-only evaluate"} <= set(stages)
    assert "latency" not in stages


def test_the_depth_only_baseline_is_the_nearest_in_the_unit_of_the_size(in_memory: Family) -> None:
    row = next(row for row in read_rows(in_memory.path, EVALUATIONS) if row["role"] == "depth_only")
    kept = row["kv_cache_bytes_per_token"]
    assert kept == 2 * 2 * row["num_key_value_heads"] * 8 * row["num_hidden_layers"]
    assert row["state_bytes_per_sequence"] == 0
    taken = 2 * row["num_parameters"] + 1024 * kept
    layer = (605_216 - 2 * 15_408) // 5  # of the teacher's memory, without embedding and last norm
    assert abs(taken - 400_000) <= layer / 2


def test_report_and_card_say_what_was_asked(in_memory: Family) -> None:
    asked = "at most 400kB for 16-bit weights and the cache of 2 x 512 tokens"
    assert asked in " ".join(in_memory.report.read_text().split())
    card = " ".join((in_memory.members[0].path / "README.md").read_text().split())
    assert f"{in_memory.members[0].num_parameters:,} parameters: {asked}. It was pruned from" in card


def test_a_size_in_speed_takes_its_shapes_from_the_latency_model_that_the_plan_names(
    build: Callable[..., Family], latency: Path, trained_teacher: Path, tmp_path: Path
) -> None:
    found = build(tmp_path / "run", *LEAST, f"search.latency={latency}", sizes=["decode=1.2x"], space=SPACE)
    whole = open_checkpoint(trained_teacher, read_values=False).architecture.num_hidden_layers + 1
    rows = read_rows(found.path, CANDIDATES)
    assert {row["num_hidden_layers"] for row in rows} == {4}  # 6 / 5 = 1.2; 6 / 4 is beyond 1.2 x (1 + 2 x 0.05)
    assert all(row["decode_seconds"] == pytest.approx(0.001 * whole / 1.2) for row in rows)
    assert [member.name for member in found.members] == ["decode-1.2x"]
    assert "at least 1.2x of the teacher's decode speed" in found.report.read_text().replace("&#39;", "'")


def test_a_speed_out_of_reach_is_refused_before_anything_is_written(
    build: Callable[..., Family], latency: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        SpaceError, match=r"no shape has between 1\.3x and 1\.43x .* nearest reachable: 1\.2x and 1\.5x"
    ):
        build(tmp_path / "run", f"search.latency={latency}", sizes=["decode=1.3x"], space=SPACE)
    assert not (tmp_path / "run" / "plan.yaml").exists()


def test_without_a_latency_model_the_run_measures_one_before_all_else(
    build: Callable[..., Family], latency: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = LatencyModel.load(latency)
    monkeypatch.setattr(latency_stage, "latency_of", lambda *arguments: measured)
    with pytest.raises(SpaceError, match=r"no shape has between 1\.3x and 1\.43x"):
        build(tmp_path / "run", sizes=["decode=1.3x"], space=SPACE)
    stages = [json.loads(line)["stage"] for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    assert stages == ["latency"]
    assert LatencyModel.load(tmp_path / "run" / "latency.json") == measured


def plan_of(teacher: Path, settings: dict[str, Any], *overrides: str, **changes: Any) -> Any:
    given = {"teacher": str(teacher), "data": "embedded", **settings, "space": SPACE, **changes}
    return make_plan(with_overrides(given, ["distillation.tokens=1k", *overrides]))


def test_a_forecast_names_sizes_in_memory_and_counts_their_shapes(
    trained_teacher: Path, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_of(trained_teacher, tiny_settings, *DEPLOYED, sizes=["memory=300kB", "memory=400kB"])
    found = dry_run(plan, tmp_path / "run", False, flops_per_second=1e9, display=Quiet())
    assert [size.size for size in found.forecast.sizes] == ["memory-400kB", "memory-300kB"]
    assert all(size.num_shapes > 5 and size.hours > 0 for size in found.forecast.sizes)
    head, *rows = [line for line in found.lines() if line.startswith(("size  ", "memory-"))][-3:]
    end = head.index("shapes") + len("shapes")
    assert [row[:end].split() for row in rows] == [[size.size, str(size.num_shapes)] for size in found.forecast.sizes]
    assert found.forecast.disk.models > 0


def test_a_forecast_of_a_speed_needs_a_latency_model(
    trained_teacher: Path, tiny_settings: dict[str, Any], latency: Path, tmp_path: Path
) -> None:
    plan = plan_of(trained_teacher, tiny_settings, sizes=["decode=1.2x"])
    with pytest.raises(
        SpaceError, match=r"what decode=1\.2x would cost: that needs a latency model; `minitron-nas lat"
    ):
        dry_run(plan, tmp_path / "run", False, flops_per_second=1e9, display=Quiet())
    plan = plan_of(trained_teacher, tiny_settings, f"search.latency={latency}", sizes=["decode=1.2x"])
    found = dry_run(plan, tmp_path / "run", False, flops_per_second=1e9, display=Quiet())
    assert found.forecast.sizes[0].num_shapes > 5
