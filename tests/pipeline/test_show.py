"""What everything that this package reads or writes is, at a glance."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.errors import CheckpointError, MinitronNasError, PlanError, TeacherNotFoundError
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.listing import enumerate_size
from minitron_nas.pipeline.show import show
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.testing import tiny_checkpoint, tiny_config, tiny_model, tiny_tokenizer
from minitron_nas.testing.tiny import TINY_E2B


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[str], Path]:
    """Write a tiny stock model of a family."""

    def write(model_type: str) -> Path:
        folder = tmp_path / model_type
        tiny_model(tiny_config(model_type)).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return write


@pytest.mark.parametrize(
    ("model_type", "parts"),
    [
        ("llama", {"embeddings", "attention", "feed-forward", "norms and others"}),
        ("gpt2", {"embeddings", "attention", "feed-forward", "norms and others"}),
        ("mixtral", {"embeddings", "attention", "experts", "router", "norms and others"}),
    ],
)
def test_a_model_is_its_sizes_and_its_parameters_by_part(
    tiny: Callable[[str], Path], model_type: str, parts: set[str]
) -> None:
    shown = show(str(folder := tiny(model_type)))
    checkpoint = open_checkpoint(folder)
    assert shown.kind == "model"
    assert shown.facts["family"] == model_type
    assert shown.facts["parameters"] == checkpoint.num_parameters
    assert shown.facts["hidden_size"] == checkpoint.architecture.hidden_size
    rows = shown.tables["parameters by part"]
    assert {row["part"] for row in rows} == parts
    assert sum(row["parameters"] for row in rows) == checkpoint.num_parameters
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert (shown.facts["active_parameters"] < checkpoint.num_parameters) == (model_type == "mixtral")


@pytest.mark.parametrize("model_type", ["llama", "gemma4_text"])
def test_a_model_without_a_tokenizer_is_shown_and_enumerated_and_not_pruned(tmp_path: Path, model_type: str) -> None:
    tiny_model(tiny_config(model_type)).save_pretrained(folder := tmp_path / "model")
    bare = show(str(folder))
    with pytest.raises(CheckpointError, match=r"model has no tokenizer"):
        prune(folder, tmp_path / "student", {"hidden_size": 40}, scores="magnitude", display=Quiet())
    space = tmp_path / "space.yaml"
    space.write_text("axes: {intermediate_size: {values: [64]}}\ntolerance: 0.9\n")
    assert len(enumerate_size(space, bare.facts["parameters"] - 1, str(folder)).candidates) == 1
    tiny_tokenizer().save_pretrained(folder)
    assert (bare.facts, bare.tables) == (show(str(folder)).facts, show(str(folder)).tables)


def test_a_student_also_says_where_it_comes_from(finished: Path) -> None:
    facts = show(str(finished / "students" / "90k")).facts
    assert facts["role"] == "student"
    assert facts["pruned_from"] == "teacher"
    assert facts["proof_holds"] is True
    assert facts["tokens_trained"] >= facts["exported_after_tokens"] >= 0


def test_a_run_is_its_members_and_what_is_left(finished: Path) -> None:
    shown, family = show(str(finished)), Family(finished)
    assert (shown.kind, shown.facts["sizes_left"], shown.facts["finished"]) == ("run", [], True)
    assert shown.facts["last_stage"] == "study"
    assert [row["model"] for row in shown.tables["members"]] == ["teacher", *(each.name for each in family.members)]
    assert [row["kl_nats"] for row in shown.tables["members"]][1:] == [each.kl_nats for each in family.members]


def test_a_run_under_way_says_which_sizes_are_left(begun: Callable[[Path, str], Path], tmp_path: Path) -> None:
    shown = show(str(begun(tmp_path / "run", "90k distil")))
    assert (shown.facts["sizes_left"], shown.facts["finished"]) == (["90k"], False)
    assert shown.facts["last_stage"] == "90k tournament"


def test_a_run_whose_weights_went_elsewhere_says_so(finished: Path, tmp_path: Path) -> None:
    assert "students_without_weights" not in show(str(finished)).facts
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("*.safetensors"))
    shown = show(str(run))
    assert (shown.facts["finished"], shown.facts["students_without_weights"]) == (True, ["90k"])


def test_scores_say_which_layers_matter(finished: Path) -> None:
    shown = show(str(finished / "importance" / "teacher"))
    assert shown.kind == "scores"
    assert int(shown.facts["num_samples"]) > 0
    assert sorted(shown.facts["layers_that_matter_least"]) == sorted(shown.facts["layers_that_matter_most"])
    assert shown.facts["layers_that_matter_least"] == shown.facts["layers_that_matter_most"][::-1]


def test_a_space_is_its_axes_by_name_or_file(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("{description: mine, axes: {num_hidden_layers: {values: [3, 4]}}, window: [1M, 2M]}")
    own, shipped = show(str(file)), show("default")
    assert (own.kind, own.facts["description"], own.facts["window"]) == ("space", "mine", [1_000_000, 2_000_000])
    assert own.tables["axes"] == [{"axis": "num_hidden_layers", "sizes": {"values": [3, 4]}}]
    assert {row["axis"] for row in shipped.tables["axes"]} >= {"hidden_size", "intermediate_size"}


def test_a_space_says_of_its_source_what_is_said_of_a_model(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("qwen3_next"))
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps({"source": checkpoint.architecture.to_dict()}))
    space, model = show(str(file)), show(str(checkpoint.path))
    of_source = {name.removeprefix("source_"): fact for name, fact in space.facts.items() if name[:7] == "source_"}
    assert of_source == {name: fact for name, fact in model.facts.items() if name != "gigabytes_of_weights"}
    assert of_source["layer_kinds"] == {"linear_attention": 3, "full_attention": 1}
    assert of_source["fixed_sizes"] == checkpoint.architecture.fixed_sizes
    assert space.tables["source parameters by part"] == model.tables["parameters by part"]


def test_a_shipped_space_tells_its_source() -> None:
    lines = [" ".join(line.split()) for line in show("qwen3-next-80b-a3b").lines()]
    assert "source parameters 79,674,391,296" in lines
    assert "source layer kinds linear attention 36, full attention 12" in lines


def test_of_mixers_their_groups_are_told_too() -> None:
    facts = show("nemotron-nano-9b-v2").facts
    assert [facts[f"source_mamba_{name}"] for name in ("num_heads", "head_dim", "num_groups")] == [128, 80, 8]


@pytest.mark.parametrize(
    ("model_type", "changes", "parts"),
    [
        ("nemotron_h", {}, {"mixers", "attention", "feed-forward"}),
        (
            "nemotron_h",
            {"layers_block_type": ["linear_attention", "moe", "full_attention"], "moe_latent_size": 24},
            {"mixers", "attention", "experts", "shared experts", "router"},
        ),
        ("granitemoehybrid", {}, {"mixers", "attention", "feed-forward"}),
        ("deepseek_v3", {}, {"attention", "feed-forward", "experts", "shared experts", "router"}),
        ("gemma4_text", {}, {"attention", "feed-forward"}),
        ("gemma4_text", TINY_E2B, {"attention", "embeddings of each layer", "feed-forward"}),
        ("qwen3_next", {}, {"mixers", "attention", "experts", "shared experts", "router"}),
    ],
)
def test_norms_and_others_hold_no_matrix(
    tmp_path: Path, model_type: str, changes: dict[str, Any], parts: set[str]
) -> None:
    shown = show(str(tiny_checkpoint(tmp_path / "model", model_type, **changes)))
    found = {row["part"]: row["parameters"] for row in shown.tables["parameters by part"]}
    assert set(found) == parts | {"embeddings", "norms and others"}
    assert found["norms and others"] < 0.02 * sum(found.values())


def test_the_neurons_of_layers_that_share_keys_are_told_where_there_are_some(tmp_path: Path) -> None:
    sharing, other = (tiny_checkpoint(tmp_path / str(len(each)), "gemma4_text", **each) for each in (TINY_E2B, {}))
    assert show(str(sharing)).facts["neurons_of_layers_that_share_keys"] == 192
    assert "neurons_of_layers_that_share_keys" not in show(str(other)).facts


def test_what_layers_keep_of_a_sequence_is_told_where_they_keep_something() -> None:
    assert show("nemotron-nano-9b-v2").facts["source_bytes_of_states_per_sequence"] == 73_433_088
    assert not [fact for fact in show("llama-3.1-8b").facts if "states" in fact]


def test_a_latency_model_says_how_well_it_predicts(latency: Path) -> None:
    shown = show(str(latency))
    assert shown.kind == "latency model"
    assert shown.facts["decode"]["r_squared"] == 1.0
    assert shown.facts["setting"]["device"] == "a device"


def test_what_is_nothing_of_the_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherNotFoundError, match=r"is no run, scores, space or latency model either: "):
        show(str(tmp_path / "nothing"))
    (tmp_path / "odd.json").write_text("[]")
    with pytest.raises(MinitronNasError, match="odd"):
        show(str(tmp_path / "odd.json"))


def test_a_plan_is_told_by_another_command(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("teacher: x\nsizes: [8B]\ndata: y\n")
    with pytest.raises(PlanError, match=r"is a plan; `minitron-nas plan --plan .*plan.yaml` says what it would do"):
        show(str(plan))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_of_a_model_stands_for_the_model(trained_teacher: Path, name: str) -> None:
    of_file, of_folder = show(str(trained_teacher / name)), show(str(trained_teacher))
    assert (of_file.facts, of_file.tables) == (of_folder.facts, of_folder.tables)


def test_the_lines_hold_everything_in_columns(finished: Path) -> None:
    lines = list(show(str(finished)).lines())
    assert lines[0] == f"run {finished}"
    members = lines[lines.index("members") + 1 :]
    assert members[0].split()[:2] == ["model", "num"]
    assert len({len(line) for line in members}) == 1
    assert all(len(line.split()) >= 2 for line in lines if line and line != "members")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (True, "yes"), (None, "-"), (1234567, "1,234,567"), (19456.0, "19,456"), (0.50791, "0.5079"),
        ([], "none"), ({"a_b": 1}, "a b 1"), ([1, "x"], "1, x"),
    ],
)  # fmt: skip
def test_values_are_told_as_people_read_them(value: Any, told: str) -> None:
    from minitron_nas.pipeline import show as module

    assert module._told(value) == told
