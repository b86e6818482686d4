import json
from pathlib import Path

import pytest

from minitron_nas.errors import LatencyError, SpaceError, TeacherNotFoundError
from minitron_nas.pipeline.listing import enumerate_size, list_known
from minitron_nas.pipeline.plan import make_plan, with_overrides
from minitron_nas.testing import tiny_checkpoint


def test_the_papers_space_has_its_eighteen_candidates() -> None:
    found = enumerate_size("minitron-15b-to-4b", 4 * 10**9)
    assert len(found.candidates) == 18
    assert all(3.8e9 <= candidate.num_parameters <= 4.2e9 for candidate in found.candidates)


def test_every_shape_of_the_grid_is_a_candidate_or_left_out_by_a_rule() -> None:
    found = enumerate_size("minitron-15b-to-4b", 4 * 10**9)
    assert len(found.candidates) + sum(found.excluded.values()) == 4 * 3 * 4 * 5


def test_a_space_without_a_source_is_enumerated_for_a_teacher(tmp_path: Path) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", "llama", hidden_size=96, tied=True)
    found = enumerate_size("default", 150_000, str(teacher))
    assert found.candidates
    assert all(candidate.architecture.vocab_size == 320 for candidate in found.candidates)


def test_a_space_without_a_source_asks_for_a_teacher() -> None:
    with pytest.raises(SpaceError, match="carries no source shape; name a teacher"):
        enumerate_size("default", 4 * 10**9)


def test_a_size_in_speed_is_enumerated_with_a_latency_model(trained_teacher: Path, latency: Path) -> None:
    found = enumerate_size("default", "decode=1.2x", str(trained_teacher), latency=latency)
    assert set(found.candidates.columns()["num_hidden_layers"].tolist()) == {4}  # (5 + 1) / (4 + 1)
    with pytest.raises(SpaceError, match=r"size decode=1\.2x: that needs a latency model"):
        enumerate_size("smollm2-135m", "decode=1.2x")
    with pytest.raises(LatencyError, match="vocab_size=320 where 49152 is needed"):
        enumerate_size("smollm2-135m", "decode=1.2x", latency=latency)


def test_memory_is_counted_for_the_sequences_that_are_asked_for() -> None:
    for batch_size, context_tokens in ((1, 4096), (8, 1000)):
        found = enumerate_size("smollm2-135m", "memory=300MB", None, batch_size, context_tokens)
        columns = found.candidates.columns()
        keys = 2 * 2 * 64 * columns["num_hidden_layers"] * columns["num_key_value_heads"]
        taken = 2 * found.candidates.num_parameters + batch_size * context_tokens * keys
        assert found.values.tolist() == taken.tolist()
        assert 288_000_000 <= taken.min() <= taken.max() <= 300_000_000


def test_every_setting_of_a_plan_is_described_with_its_default() -> None:
    rows = {row["name"]: row for row in list_known("settings")}
    assert rows["evaluation.texts"]["default"] == {}
    assert not [name for name in rows if name.startswith("evaluation.texts.")]  # whose names are the user's
    leaves = ("distillation.loss", "search.num_rungs", "importance.depth.mode", "correct.tokens", "seed")
    space = ("space", "space.tolerance", "space.window", "space.protected_layers", "space.axes.num_experts")
    for key in (*leaves, *space, "correct"):
        assert key in rows
    assert all(len(row["about"]) > 12 for row in rows.values())
    assert rows["distillation.learning_rate"]["default"] == "auto"
    assert rows["search.num_rungs"]["about"].startswith("Rungs of the tournament; each has")
    assert rows["search.num_rungs"]["about"].endswith(" Default: 3.")
    assert "Default" not in rows["teacher"]["about"] + rows["correct"]["about"] + rows["space.window"]["about"]
    assert rows["space.tolerance"]["default"] == 0.05
    assert rows["space.axes.num_hidden_layers"]["about"].endswith(
        " Default: {min_fraction: 0.75, multiple_of: 1, step_fraction: 0.03125}."
    )
    for row in rows.values():
        if row["default"] is not None and row["name"] not in {"space", "sizes", "data", "teacher"}:
            value = json.dumps(row["default"])
            make_plan(with_overrides({"teacher": "x", "sizes": [1], "data": "x"}, [f"{row['name']}={value}"]))


def test_an_unknown_space_is_refused() -> None:
    with pytest.raises(SpaceError, match="no search space 'nowhere'"):
        enumerate_size("nowhere", 4 * 10**9)


def test_a_teacher_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherNotFoundError, match="there is no teacher at"):
        enumerate_size("default", 4 * 10**9, str(tmp_path / "nowhere"))
