"""Everything that is known of a run before it runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.errors import PlanError, SpaceError
from minitron_nas.pipeline.devices import Devices
from minitron_nas.pipeline.dry_run import SOURCE_OF_THE_SPACE, dry_run
from minitron_nas.pipeline.plan import FamilyPlan, make_plan, with_overrides

TEACHER = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 320,
    "tie_word_embeddings": True,
}


@pytest.fixture
def plan(tmp_path: Path, tiny_settings: dict[str, Any]) -> Any:
    """A plan for a teacher of which the config alone is there."""
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(TEACHER))
    (tmp_path / "text.txt").write_text("The result of the call. " * 1000)

    def call(*overrides: str) -> FamilyPlan:
        given = {"teacher": str(tmp_path / "teacher"), "sizes": ["90k"], "data": str(tmp_path / "text.txt")}
        return make_plan(with_overrides({**given, **tiny_settings}, overrides))

    return call


def test_a_config_and_a_text_are_enough_and_nothing_is_written(plan: Any, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = dry_run(plan(), tmp_path / "run", flops_per_second=1e9)
    assert found.text == (f"text: {tmp_path / 'text.txt'}: 1 file, 24 kB",)
    assert found.forecast.tokens.distillation == 10_000
    (signal,) = found.notes
    assert signal.startswith("teacher_signal: hidden_cache; final hidden states of 10k tokens take ")
    assert found.unpacked_bytes == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert next(found.lines()) == found.text[0]
    values = json.loads(json.dumps(found.to_dict()))
    assert values["text"] == list(found.text)
    assert values["sizes"][0]["size"] == "90k"


def test_without_a_number_of_tokens_they_are_taken_from_the_text(plan: Any, tmp_path: Path) -> None:
    found = dry_run(plan("distillation.tokens=null"), tmp_path, flops_per_second=1e9)
    assert found.forecast.tokens.distillation == 6_000
    assert "taken for 6k tokens, one for each 4 bytes" in found.notes[1]
    unread = dry_run(plan("distillation.tokens=null"), tmp_path, reads_text=False, flops_per_second=1e9)
    assert unread.forecast.tokens.distillation == 10**9
    assert (unread.text, "1B tokens are assumed" in unread.notes[1]) == ((), True)


def test_a_pace_that_is_not_given_is_measured(plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minitron_nas.pipeline.dry_run.measure_throughput", lambda: 2e9)
    found = dry_run(plan(), tmp_path)
    assert found.forecast.flops_per_second == 2e9
    assert "measured just now" in found.notes[1]


def test_a_space_that_carries_its_source_needs_no_teacher(plan: Any, tmp_path: Path) -> None:
    given = {"teacher": SOURCE_OF_THE_SPACE, "sizes": ["8B"], "data": "x", "space": "minitron-15b-to-8b"}
    cluster = Devices("a device", 128, 200 * 10**9, are_here=False)
    found = dry_run(make_plan(given), tmp_path, reads_text=False, devices=cluster, flops_per_second=4e14)
    assert found.forecast.sizes[0].num_shapes == 15
    with pytest.raises(SpaceError, match="carries no source shape"):
        dry_run(make_plan({**given, "space": "default"}), tmp_path, reads_text=False, flops_per_second=4e14)


def test_faults_of_the_plan_are_told(plan: Any, tmp_path: Path) -> None:
    wrong = plan("sizes=[10k]", f"data={tmp_path / 'no.txt'}")
    with pytest.raises(
        PlanError, match=r"2 faults: no file matches .*no\.txt.*; no shape has between 9,500 and 10,500"
    ):
        dry_run(wrong, tmp_path, flops_per_second=1e9)
