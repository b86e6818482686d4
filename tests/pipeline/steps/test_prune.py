import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_nas.errors import InvalidArchitectureError, PlanError, RunFolderError, ScoresError, SpaceError
from minitron_nas.importance.scores import load_calibration
from minitron_nas.importance.settings import DepthSettings, ImportanceSettings
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.pipeline.steps.score import score
from minitron_nas.space.axes import SearchSpace
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.settings import TextSettings

TEXT = TextSettings(sequence_length=64, calibration_samples=16)

SHARED = {"num_hidden_layers": 5, "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 12}


def pruned_to(out: Path, teacher: object, shape: dict[str, int], text_file: Path) -> object:
    return prune(teacher, out, shape, data=text_file, text=TEXT, display=Quiet())


def test_pruning_nothing_gives_the_teachers_tensors_to_the_bit(
    trained_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    pruned_to(tmp_path / "student", trained_teacher, {"intermediate_size": 128}, text_file)
    teacher, student = (AutoModelForCausalLM.from_pretrained(f) for f in (trained_teacher, tmp_path / "student"))
    expected = teacher.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in student.state_dict().items())


def test_a_pruned_student_has_its_shape_proof_and_lineage(
    trained_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    shape = {"num_hidden_layers": 4, "hidden_size": 42, "num_key_value_heads": 1}
    result = pruned_to(tmp_path / "student", trained_teacher, shape, text_file)
    model = AutoModelForCausalLM.from_pretrained(result.path, trust_remote_code=False)
    assert {name: getattr(model.config, name) for name in shape} == shape
    assert model.config.num_attention_heads == 3
    assert model.num_parameters() == result.num_parameters
    assert result.proof.max_abs_difference <= result.proof.tolerance
    lineage = json.loads((result.path / "lineage.json").read_text())
    assert lineage["tokens_trained"] == 0
    assert lineage["kept_layers"][0] == 0
    assert lineage["kept_layers"][-1] == 4


def test_a_live_teacher_is_pruned_without_being_changed(trained_teacher: Path, text_file: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained_teacher)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pair = (model, AutoTokenizer.from_pretrained(trained_teacher))
    from_pair = pruned_to(tmp_path / "one", pair, {"hidden_size": 42}, text_file)
    from_folder = pruned_to(tmp_path / "two", trained_teacher, {"hidden_size": 42}, text_file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    weights = [(result.path / "model.safetensors").read_bytes() for result in (from_pair, from_folder)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"hidden_size": 49}, r"hidden_size=49 exceeds the source's 48; pruning only removes"),
        ({"hidden_size": 40}, r"hidden_size=40 with num_attention_heads=6 .*nearest legal hidden_size: 36 or 42"),
        (
            {"vocab_size": 100},
            r"'vocab_size' is not a prunable size of family 'llama'; choose from num_hidden",
        ),
        ({"num_hidden_layers": 0}, r"num_hidden_layers=0 must be an integer of at least 1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_and_leaves_nothing(
    trained_teacher: Path, text_file: Path, tmp_path: Path, shape: dict[str, int], message: str
) -> None:
    with pytest.raises(InvalidArchitectureError, match=message):
        pruned_to(tmp_path / "student", trained_teacher, shape, text_file)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["plan.yaml", "config.json"])
def test_pruning_never_replaces_a_folder_that_holds_something(
    trained_teacher: Path, text_file: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunFolderError, match=r"exists and is not empty; choose an empty or new --out"):
        pruned_to(tmp_path, trained_teacher, {"hidden_size": 42}, text_file)
    assert (tmp_path / name).read_text() == "mine"


def test_a_link_to_an_empty_folder_stays_and_the_folder_gets_what_is_written(
    trained_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    for name in ("student", "scores"):
        (disk / name).mkdir(parents=True)
        (tmp_path / name).symlink_to(disk / name)
    prune(trained_teacher, tmp_path / "student", {"intermediate_size": 64}, scores="magnitude", display=Quiet())
    score(trained_teacher, text_file, tmp_path / "scores", TEXT, display=Quiet())
    assert all((tmp_path / name).is_symlink() for name in ("student", "scores"))
    assert {path.name for path in disk.glob("*/*.safetensors")} >= {"model.safetensors", "scores.safetensors"}
    assert {path.name for path in disk.iterdir()} == {"student", "scores"}


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_scores_are_kept_once_and_pruned_from_as_if_scored_there_and_then(
    trained_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    shape = {"hidden_size": 42, "intermediate_size": 64, "num_hidden_layers": 4}
    scores = score(trained_teacher, text_file, tmp_path / "scores", TEXT, display=Quiet())
    assert {file.name for file in scores.iterdir()} == {
        "scores.safetensors",
        "scores.parquet",
        "calibration.safetensors",
    }
    first = prune(trained_teacher, tmp_path / "one", shape, scores=scores, display=Quiet())
    second = pruned_to(tmp_path / "two", trained_teacher, shape, text_file)
    assert weights(first.path) == weights(second.path)


def test_the_scores_of_another_model_are_refused(trained_teacher: Path, text_file: Path, tmp_path: Path) -> None:
    scores = score(trained_teacher, text_file, tmp_path / "scores", TEXT, display=Quiet())
    other = tiny_checkpoint(tmp_path / "other", "llama", seed=5)
    with pytest.raises(ScoresError, match=r"holds the scores of model \w+, not of this one \(\w+\); score this one"):
        prune(other, tmp_path / "student", {"hidden_size": 42}, scores=scores, display=Quiet())
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("scores", ["magnitude", "random"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "qwen3_moe", "gemma2"])
def test_baselines_need_no_text(tmp_path: Path, model_type: str, scores: str) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", model_type)
    ffn = "moe_intermediate_size" if model_type == "qwen3_moe" else "intermediate_size"
    result = prune(teacher, tmp_path / "student", {ffn: 32, "num_hidden_layers": 3}, scores=scores, display=Quiet())
    assert getattr(result.architecture, ffn) == 32
    assert result.proof.max_abs_difference <= result.proof.tolerance
    assert json.loads((result.path / "lineage.json").read_text())["scores"] == scores


def test_random_scores_follow_the_seed(tmp_path: Path) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", "llama")
    one, two, three = (
        prune(teacher, tmp_path / name, {"hidden_size": 24}, scores="random", seed=seed, display=Quiet())
        for name, seed in (("one", 1), ("two", 1), ("three", 2))
    )
    assert weights(one.path) == weights(two.path) != weights(three.path)


def test_a_size_keeps_layers_and_heads_and_shrinks_channels_and_neurons_alike(tmp_path: Path) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", "mistral", hidden_size=96, intermediate_size=256, head_dim=16)
    result = prune(teacher, tmp_path / "student", size=350_000, scores="random", display=Quiet())
    shape = result.architecture
    assert (shape.num_hidden_layers, shape.num_attention_heads) == (4, 6)
    assert abs(shape.hidden_size / 96 - shape.intermediate_size / 256) < 0.15
    assert abs(result.num_parameters / 350_000 - 1) <= 0.05


@pytest.mark.parametrize(("model_type", "size"), [("nemotron_h", 50_000), ("falcon_h1", 110_000)])
def test_a_size_keeps_heads_of_mixers(tmp_path: Path, model_type: str, size: int) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", model_type)
    shape = prune(teacher, tmp_path / "student", size=size, scores="random", display=Quiet()).architecture
    assert (shape.num_attention_heads, shape.mamba_num_heads, shape.mamba_head_dim) == (6, 6, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": "random"}, "prune needs either a shape, such as hidden_size=504, or a size, such as 94M"),
        ({"shape": {"hidden_size": 42}, "size": 90_000, "scores": "random"}, "prune needs either a shape"),
        ({"shape": {"hidden_size": 42}}, "prune needs either scores .* or data to score on"),
    ],
)
def test_what_does_not_go_together_is_refused(
    trained_teacher: Path, tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        prune(trained_teacher, tmp_path / "student", **arguments, display=Quiet())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_scores_and_a_size_out_of_reach_leave_nothing(trained_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match=r"holds no scores\.safetensors; give a folder that"):
        prune(trained_teacher, tmp_path / "student", {"hidden_size": 42}, scores=tmp_path, display=Quiet())
    with pytest.raises(SpaceError, match="is not below the source's"):
        prune(trained_teacher, tmp_path / "student", size=10**9, scores="random", display=Quiet())
    assert list(tmp_path.iterdir()) == []


def lineage(folder: Path) -> dict[str, Any]:
    told: dict[str, object] = json.loads((folder / "lineage.json").read_text())
    return told


def by(**depth: object) -> ImportanceSettings:
    return ImportanceSettings(depth=DepthSettings(num_sequences=8, **depth))


@pytest.mark.parametrize(
    "depth",
    [
        {"criterion": "loss"},
        pytest.param({"criterion": "kl", "mode": "block"}, marks=pytest.mark.slow),
        pytest.param({"criterion": "logit_mse", "mode": "greedy"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_layers_are_measured_on_the_text_that_the_scores_folder_keeps(
    trained_teacher: Path, text_file: Path, tmp_path: Path, depth: dict[str, object]
) -> None:
    scores = score(trained_teacher, text_file, tmp_path / "scores", TEXT, display=Quiet())
    assert load_calibration(scores).num_sequences == 16
    shape = {"num_hidden_layers": 3}
    one = prune(trained_teacher, tmp_path / "one", shape, scores=scores, importance=by(**depth), display=Quiet())
    two = prune(
        trained_teacher, tmp_path / "two", shape, data=text_file, text=TEXT, importance=by(**depth), display=Quiet()
    )
    assert weights(one.path) == weights(two.path)
    told = lineage(one.path)
    kept = told["kept_layers"]
    assert (kept[0], kept[-1], len(kept)) == (0, 4, 3)
    assert told["depth"] == by(**depth).depth.model_dump()


def test_measuring_layers_needs_text(trained_teacher: Path, text_file: Path, tmp_path: Path) -> None:
    scores = score(trained_teacher, text_file, tmp_path / "scores", TEXT, display=Quiet())
    (scores / "calibration.safetensors").unlink()
    fewer, out = {"num_hidden_layers": 4}, tmp_path / "student"
    measured = {"importance": by(criterion="kl"), "display": Quiet()}
    with pytest.raises(ScoresError, match=r"holds no calibration\.safetensors, the text that its scores were measured"):
        prune(trained_teacher, out, fewer, scores=scores, **measured)
    with pytest.raises(PlanError, match=r"scores=random bring no text, which .* give --data too"):
        prune(trained_teacher, out, fewer, scores="random", **measured)
    assert not out.exists()
    prune(trained_teacher, out, {"intermediate_size": 64}, scores="random", **measured)
    both = prune(trained_teacher, tmp_path / "both", fewer, scores="random", data=text_file, text=TEXT, **measured)
    assert both.architecture.num_hidden_layers == 4


def test_layers_that_are_named_leave_protected_or_not_and_no_others(trained_teacher: Path, tmp_path: Path) -> None:
    result = prune(
        trained_teacher,
        tmp_path / "student",
        {"intermediate_size": 64},
        scores="random",
        importance=by(criterion="kl"),
        drop_layers=[0, -2],
        display=Quiet(),
    )
    assert (result.architecture.num_hidden_layers, result.architecture.intermediate_size) == (3, 64)
    assert (lineage(result.path)["kept_layers"], lineage(result.path)["depth"]) == ([1, 2, 4], "drop_layers")
    alone = prune(trained_teacher, tmp_path / "alone", scores="random", drop_layers=[3], display=Quiet())
    teacher, student = (AutoModelForCausalLM.from_pretrained(f).model for f in (trained_teacher, alone.path))
    assert torch.equal(student.layers[3].mlp.up_proj.weight, teacher.layers[4].mlp.up_proj.weight)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 90_000, "drop_layers": [1]}, PlanError, "drop_layers goes with a shape, not with a size"),
        (
            {"shape": {"num_hidden_layers": 3}, "drop_layers": [1]},
            PlanError,
            "drop_layers leaves 4 of 5 layers, but the shape has num_hidden_layers=3",
        ),
        ({"drop_layers": [5]}, InvalidArchitectureError, "drop_layers names layer 5, which does not exist"),
    ],
)
def test_naming_layers_that_cannot_leave_leaves_nothing(
    trained_teacher: Path, tmp_path: Path, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prune(trained_teacher, tmp_path / "student", scores="random", display=Quiet(), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_last_layer_with_attention_of_a_hybrid_cannot_be_dropped(tmp_path: Path) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", "qwen3_5_text", num_hidden_layers=8)
    with pytest.raises(InvalidArchitectureError, match=r"none of the 6 layers has attention, .* kind full_attention"):
        prune(teacher, tmp_path / "student", scores="random", drop_layers=[3, 7], display=Quiet())
    assert not (tmp_path / "student").exists()


def test_the_last_layer_stays_unprotected_where_transformers_takes_it_for_one_kind(tmp_path: Path) -> None:
    kinds = ["full_attention", *["sliding_attention"] * 3, "full_attention"]
    changes = {"layer_types": kinds, **SHARED}
    teacher, space = tiny_checkpoint(tmp_path / "teacher", "gemma4_text", **changes), SearchSpace(protected_layers=())
    given: dict[str, Any] = {"scores": "random", "space": space, "display": Quiet()}
    pruned = prune(teacher, tmp_path / "student", {"num_hidden_layers": 3}, **given)
    assert lineage(pruned.path)["kept_layers"][::2] == [0, 4]
    for options, said in (
        ({"shape": {"num_hidden_layers": 1}}, r"num_hidden_layers=1 keeps no layer of kind .* keep at least 2 layers"),
        ({"drop_layers": [4]}, r"the last of the 4 layers is of kind 'sliding_attention', and stock transformers"),
    ):
        with pytest.raises(InvalidArchitectureError, match=said):
            prune(teacher, tmp_path / "refused", **options, **given)
        assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("options", "mode", "kinds"),
    [
        *(
            ({"shape": {"num_hidden_layers": 6}}, mode, ["linear_attention"] * 4 + ["full_attention"] * 2)
            for mode in ("layers", "greedy", "block")
        ),
        ({"shape": {"num_hidden_layers": 4}}, "layers", ["linear_attention"] * 3 + ["full_attention"]),
        ({"drop_layers": [0, 1, 2]}, "layers", ["linear_attention"] * 3 + ["full_attention"] * 2),
        (
            {"drop_layers": [3, 4], "shape": {"hidden_size": 40}},
            "layers",
            ["linear_attention"] * 5 + ["full_attention"],
        ),
    ],
)
def test_a_hybrid_keeps_the_kinds_that_its_depth_says_or_the_layers_that_are_named(
    text_file: Path, tmp_path: Path, options: dict[str, Any], mode: str, kinds: list[str]
) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", "qwen3_5_text", num_hidden_layers=8)
    depth = DepthSettings(criterion="kl", mode=mode, num_sequences=2)
    result = prune(
        teacher,
        tmp_path / "student",
        data=text_file,
        text=TEXT,
        importance=ImportanceSettings(depth=depth),
        display=Quiet(),
        **options,
    )
    written = json.loads((result.path / "config.json").read_text())
    kept = json.loads((result.path / "lineage.json").read_text())["kept_layers"]
    assert written["layer_types"] == [("linear_attention", "full_attention")[layer % 4 == 3] for layer in kept]
    assert sorted(written["layer_types"], reverse=True) == kinds
    assert written["num_hidden_layers"] == len(kinds)
    model = AutoModelForCausalLM.from_pretrained(result.path, trust_remote_code=False)
    assert model.num_parameters() == result.num_parameters
    assert result.proof.holds


@pytest.mark.parametrize("name", ["tokenizer-x", "vocab-x", "LICENSE-x", "x.model"])
def test_a_student_inside_its_teachers_folder_is_no_part_of_the_teacher(tmp_path: Path, name: str) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", "llama")
    before = open_checkpoint(teacher)
    tokenizer, outline = before.tokenizer_fingerprint(), before.outline()
    inside, beside = (
        prune(teacher, out, {"intermediate_size": 64}, scores="random", display=Quiet()).path
        for out in (teacher / name, tmp_path / "student")
    )
    after = open_checkpoint(teacher)
    assert (after.fingerprint, after.tokenizer_fingerprint()) == (before.fingerprint, tokenizer)
    assert after.outline().companions_bytes == outline.companions_bytes
    assert {file.name for file in inside.iterdir()} == {file.name for file in beside.iterdir()}


@pytest.mark.parametrize(
    ("model_type", "own", "other"),
    [
        ("nemotron_h", "layers_block_type", "layer_types"),
        ("granitemoehybrid", "layer_types", "layers_block_type"),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_kinds_of_layers_under_another_familys_key_are_the_students_own(
    tmp_path: Path, model_type: str, own: str, other: str, beside: bool
) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", model_type)
    content = json.loads((teacher / "config.json").read_text())
    kinds = content.pop(own)
    content |= {
        other: kinds,
        **({own: kinds[::-1]} if beside else {}),
    }  # transformers reads the other key, if it is there
    (teacher / "config.json").write_text(json.dumps(content))
    pruned = prune(teacher, tmp_path / "student", {"num_hidden_layers": 3}, scores="random", display=Quiet())
    written = json.loads((pruned.path / "config.json").read_text())
    assert other not in written
    assert len(written[own]) == 3
    student = AutoModelForCausalLM.from_pretrained(pruned.path)
    assert len(student.get_decoder().layers) == student.config.num_hidden_layers == 3
    assert student.config.layer_types == list(pruned.architecture.layer_kinds)
    assert pruned.proof is not None
