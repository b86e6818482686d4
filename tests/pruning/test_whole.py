"""Students inside the wrapper that they were cut from, against the same students alone, as transformers loads both."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from minitron_nas.errors import (
    CheckpointError,
    DiskSpaceError,
    InvalidArchitectureError,
    PlanError,
    ProofError,
    SpaceError,
)
from minitron_nas.families.wrappers import WRAPPERS
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.dry_run import dry_run
from minitron_nas.pipeline.plan import make_plan
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.space.axes import SearchSpace, load_space
from minitron_nas.testing import rewrite_tensors, tiny_checkpoint

IDS = torch.arange(10, 40)[None]
SHAPES = {
    "gemma4": {"intermediate_size": 40, "num_hidden_layers": 2, "num_experts": 3, "moe_intermediate_size": 24},
    "gemma4 e2b": {"intermediate_size": 40, "num_hidden_layers": 4},
    "gemma4_unified": {"intermediate_size": 40, "num_hidden_layers": 2},
    "llama4": {"intermediate_size": 40, "num_experts": 2, "num_key_value_heads": 1},
    "qwen2_vl": {"intermediate_size": 40, "num_hidden_layers": 2},
    "qwen2_5_vl": {"intermediate_size": 40, "num_hidden_layers": 2},
    "qwen3_5": {"intermediate_size": 40, "num_key_value_heads": 1},
    "qwen3_5_moe": {"moe_intermediate_size": 24, "num_experts": 2},
    "qwen3_vl_moe": {"moe_intermediate_size": 32, "num_experts": 2, "num_hidden_layers": 2, "num_key_value_heads": 1},
}
OTHERS = {"intermediate_size": 40, "num_key_value_heads": 1, "num_hidden_layers": 2}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    if type(model).__name__ == "Llama4ForConditionalGeneration":  # whose own forward pass fails on text
        model = model.language_model
    found: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return found


def loaded(folder: Path) -> Any:
    """The wrapper in a folder, after transformers has found all that it needs there and needed all that is there."""
    model, info = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=False, output_loading_info=True)
    assert not any(info.values()), info
    return model


def beside_text(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    wrapper = WRAPPERS[json.loads((folder / "config.json").read_text())["model_type"]]
    return {name: tensors[name] for name in wrapper.other_names(tensors)}


@pytest.mark.parametrize("model_type", [*WRAPPERS, "gemma4 e2b"])
def test_a_student_says_the_same_inside_its_wrapper_and_alone(
    wrapper: Callable[..., Path], tmp_path: Path, model_type: str
) -> None:
    teacher, shape = wrapper(model_type, tied=model_type in {"gemma3", "smolvlm"}), SHAPES.get(model_type, OTHERS)
    alone = prune(teacher, tmp_path / "alone", shape, scores="random", display=Quiet())
    inside = prune(teacher, tmp_path / "inside", shape, scores="random", text_only=False, display=Quiet())
    assert (inside.architecture, inside.num_parameters) == (alone.architecture, alone.num_parameters)
    assert inside.proof == alone.proof is not None
    whole, student = loaded(inside.path), AutoModelForCausalLM.from_pretrained(alone.path, trust_remote_code=False)
    assert type(whole) is type(AutoModelForImageTextToText.from_pretrained(teacher))
    assert torch.equal(logits(whole), logits(student))
    before, after = beside_text(teacher), beside_text(inside.path)
    assert before.keys() == after.keys() != set()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert open_checkpoint(inside.path).architecture == open_checkpoint(alone.path).architecture
    assert {file.name for file in alone.path.iterdir()} == {file.name for file in inside.path.iterdir()}


@pytest.mark.parametrize("width", [40, 24])
def test_experts_lie_in_a_student_as_in_its_wrapper_where_transformers_can_tell(
    wrapper: Callable[..., Path], tmp_path: Path, width: int
) -> None:
    teacher = shutil.copytree(wrapper("qwen3_vl_moe"), tmp_path / "teacher")
    tensors = load_file(teacher / "model.safetensors")
    stacks = {name: tensor.mT.contiguous() for name, tensor in tensors.items() if ".mlp.experts." in name}
    rewrite_tensors(teacher, stacks)
    shape, options = {"moe_intermediate_size": width}, {"scores": "magnitude", "display": Quiet()}
    alone = prune(teacher, tmp_path / "alone", shape, **options)
    inside = prune(teacher, tmp_path / "inside", shape, text_only=False, **options)
    whole, student = loaded(inside.path), AutoModelForCausalLM.from_pretrained(alone.path)
    # Where a tensor lies in a mapped file decides how experts are multiplied, and so the last digit.
    torch.testing.assert_close(logits(whole), logits(student), rtol=0, atol=1e-5)
    after = load_file(inside.path / "model.safetensors")
    assert after.keys() == tensors.keys()
    before = "model.language_model.layers.1.mlp.experts."
    assert after[f"{before}gate_up_proj"].shape == (4, 48, 2 * width)
    assert after[f"{before}down_proj"].shape == (4, width, 48)
    is_turned = width != 24  # in a square transformers sees no other way round
    ups = after[f"{before}gate_up_proj"]
    assert torch.equal(ups.mT if is_turned else ups, whole.state_dict()[f"{before}gate_up_proj"])
    if width == 40:
        assert all(torch.equal(after[name], tensor) for name, tensor in stacks.items())


def test_pruning_nothing_of_it_gives_the_wrapper_back(wrapper: Callable[..., Path], tmp_path: Path) -> None:
    teacher = wrapper("qwen3_vl")
    prune(teacher, tmp_path / "same", {"intermediate_size": 96}, scores="magnitude", text_only=False, display=Quiet())
    before, after = (load_file(folder / "model.safetensors") for folder in (teacher, tmp_path / "same"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    configs = [json.loads((folder / "config.json").read_text()) for folder in (teacher, tmp_path / "same")]
    assert configs[0] == configs[1]


def test_a_student_that_was_cut_inside_its_wrapper_is_cut_again(wrapper: Callable[..., Path], tmp_path: Path) -> None:
    first = prune(
        wrapper("mistral3"),
        tmp_path / "a",
        {"intermediate_size": 64},
        scores="random",
        text_only=False,
        display=Quiet(),
    )
    second = prune(
        first.path, tmp_path / "b", {"num_hidden_layers": 2}, scores="random", text_only=False, display=Quiet()
    )
    assert (loaded(second.path).config.text_config.intermediate_size, second.architecture.num_hidden_layers) == (64, 2)


@pytest.mark.parametrize("model_type", ["llava", "mistral3", "smolvlm"])
def test_heads_keep_their_channels_where_the_wrapper_does_not_say_how_many_they_have(
    wrapper: Callable[..., Path], tmp_path: Path, model_type: str
) -> None:
    teacher = shutil.copytree(wrapper(model_type), tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    del config["text_config"]["head_dim"]
    (teacher / "config.json").write_text(json.dumps(config))
    shape = {"num_key_value_heads": 1, "intermediate_size": 40}
    pruned = prune(teacher, tmp_path / "s", shape, scores="random", text_only=False, display=Quiet())
    assert loaded(pruned.path).config.text_config.head_dim == 8


@pytest.mark.parametrize("text_only", [True, False])
def test_an_attempt_of_the_other_kind_is_not_gone_on_with(
    wrapper: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_only: bool
) -> None:
    teacher, shape = wrapper("qwen2_5_vl"), SHAPES["qwen2_5_vl"]

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            "minitron_nas.pruning.export._prove" if text_only else "minitron_nas.pruning.whole._compare", stop
        )
        with pytest.raises(KeyboardInterrupt):
            prune(teacher, tmp_path / "s", shape, scores="random", text_only=text_only, display=Quiet())
    pruned = prune(teacher, tmp_path / "s", shape, scores="random", text_only=not text_only, display=Quiet())
    if text_only:
        loaded(pruned.path)
    else:
        assert type(AutoModelForCausalLM.from_pretrained(pruned.path)).__name__ == "Qwen2ForCausalLM"
    assert not [file for file in tmp_path.iterdir() if file.name != "s"]


def test_an_attempt_beside_a_tower_that_was_another_is_not_gone_on_with(
    wrapper: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(wrapper("qwen2_5_vl"))
    teacher, shape = shutil.copytree(wrapper("qwen2_5_vl"), tmp_path / "teacher"), SHAPES["qwen2_5_vl"]
    model.save_pretrained(teacher, max_shard_size="20KB")
    (teacher / "model.safetensors").unlink()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("minitron_nas.pruning.whole._compare", stop)
        with pytest.raises(KeyboardInterrupt):
            prune(teacher, tmp_path / "s", shape, scores="random", text_only=False, display=Quiet())
    changed = 0
    for shard in teacher.glob("model-*.safetensors"):
        tensors = load_file(shard)
        if all("visual" in name for name in tensors):
            save_file({name: 1 - tensor for name, tensor in tensors.items()}, shard, {"format": "pt"})
            changed += 1
    assert changed
    pruned = prune(teacher, tmp_path / "s", shape, scores="random", text_only=False, display=Quiet())
    before = AutoModelForImageTextToText.from_pretrained(teacher).state_dict()
    after = loaded(pruned.path).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if "visual" in name)


def test_a_tower_that_transformers_would_make_up_a_part_of_is_no_proof(
    wrapper: Callable[..., Path], tmp_path: Path
) -> None:
    teacher = shutil.copytree(wrapper("qwen2_5_vl"), tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    config["vision_config"]["depth"] += 1
    (teacher / "config.json").write_text(json.dumps(config))
    fault = rf"student that was to be {tmp_path / 's'}, inside its wrapper: model\.visual\.blocks\.1\.[^ ]*, "
    with pytest.raises(ProofError, match=fault):
        prune(teacher, tmp_path / "s", SHAPES["qwen2_5_vl"], scores="random", text_only=False, display=Quiet())
    assert not (tmp_path / "s").exists()


def test_a_student_that_says_something_else_inside_its_wrapper_is_named(
    wrapper: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([torch.zeros(1), torch.ones(1)])
    monkeypatch.setattr("minitron_nas.pruning.whole.logits_of", lambda *_: next(found))
    fault = rf"the student that was to be {tmp_path / 's'} gives logits inside its wrapper that differ by 1 from those"
    with pytest.raises(ProofError, match=fault):
        prune(wrapper("gemma3"), tmp_path / "s", OTHERS, scores="random", text_only=False, display=Quiet())
    assert not (tmp_path / "s").exists()


def test_sizes_that_a_wrapper_says_twice_are_the_students_in_both_places(
    wrapper: Callable[..., Path], tmp_path: Path
) -> None:
    teacher = shutil.copytree(wrapper("llava"), tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    twice = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config |= {name: config["text_config"][name] for name in twice}
    (teacher / "config.json").write_text(json.dumps(config))
    shape = {"num_hidden_layers": 2, "intermediate_size": 40, "num_key_value_heads": 1}
    pruned = prune(teacher, tmp_path / "s", shape, scores="random", text_only=False, display=Quiet())
    loaded(pruned.path)
    config = json.loads((pruned.path / "config.json").read_text())
    said = {"hidden_size": 48, "num_attention_heads": 3, "head_dim": 8, **shape}
    assert {name: config[name] for name in said} == {name: config["text_config"][name] for name in said} == said


def test_infinity_that_a_tower_holds_is_kept_and_that_of_the_text_part_refused(
    wrapper: Callable[..., Path], tmp_path: Path
) -> None:
    teacher = shutil.copytree(wrapper("gemma4"), tmp_path / "teacher")
    tensors = load_file(teacher / "model.safetensors")
    bound = next(name for name in tensors if name.startswith("model.vision_tower."))
    tensors[bound][:] = float("inf")
    save_file(tensors, teacher / "model.safetensors", {"format": "pt"})
    pruned = prune(teacher, tmp_path / "s", SHAPES["gemma4"], scores="random", text_only=False, display=Quiet())
    assert beside_text(pruned.path)[bound].isinf().all()
    tensors["model.language_model.norm.weight"][0] = float("inf")
    save_file(tensors, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="'model.norm.weight' holds NaN or infinity"):
        prune(teacher, tmp_path / "t", SHAPES["gemma4"], scores="random", text_only=False, display=Quiet())


def test_room_for_a_student_alone_and_inside_its_wrapper_is_asked_for_before_anything_is_written(
    wrapper: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_nas.storage.atomic.free_bytes", lambda folder: 250_000)
    monkeypatch.setattr("minitron_nas.pruning.export.write_weights", lambda *_: pytest.fail("something was written"))
    with pytest.raises(DiskSpaceError, match="the student's weights, alone and inside the wrapper, needs"):
        prune(wrapper("gemma3"), tmp_path / "s", OTHERS, scores="random", text_only=False, display=Quiet())


def test_where_memory_is_too_small_for_a_proof_nothing_is_compared(
    wrapper: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_nas.pruning.export.available_memory", lambda: 0)
    pruned = prune(wrapper("gemma3"), tmp_path / "s", OTHERS, scores="random", text_only=False, display=Quiet())
    assert pruned.proof is None
    loaded(pruned.path)


def test_what_is_said_of_pictures_goes_with_the_wrapper(wrapper: Callable[..., Path], tmp_path: Path) -> None:
    teacher = wrapper("gemma3")
    (teacher / "preprocessor_config.json").write_text('{"size": 28}')
    pruned = prune(teacher, tmp_path / "s", OTHERS, scores="random", text_only=False, display=Quiet())
    assert (pruned.path / "preprocessor_config.json").read_text() == '{"size": 28}'


@pytest.mark.parametrize(
    ("model_type", "request_", "fault"),
    [
        ("gemma3", {"shape": {"hidden_size": 40}}, r"hidden_size=48 stay, because what looks at pictures writes there"),
        ("qwen3_vl", {"drop_layers": [0]}, r"hidden_size=48 and the first layers that it feeds stay"),
        ("qwen2_5_vl", {"shape": {"num_key_value_heads": 1}}, r"hidden_size=48, num_attention_heads=6, num_key_value"),
    ],
)
def test_what_the_tower_writes_into_cannot_leave(
    wrapper: Callable[..., Path], tmp_path: Path, model_type: str, request_: dict[str, Any], fault: str
) -> None:
    with pytest.raises(InvalidArchitectureError, match=fault):
        prune(wrapper(model_type), tmp_path / "s", scores="random", text_only=False, display=Quiet(), **request_)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("axes", [{}, {"hidden_size": {"values": [24, 32, 40]}}])
def test_a_space_of_which_a_tower_leaves_nothing_to_prune_is_refused(
    wrapper: Callable[..., Path], tmp_path: Path, axes: dict[str, Any]
) -> None:
    teacher, space = wrapper("gemma3"), SearchSpace.model_validate({"axes": axes})
    told = "with text_only=false hidden_size stay, and the space lets no other size change; add an axis"
    options: dict[str, Any] = {"scores": "random", "space": space, "text_only": False, "display": Quiet()}
    with pytest.raises(SpaceError, match=told):
        prune(teacher, tmp_path / "s", size="80k", **options)
    with pytest.raises(SpaceError, match=told):
        plan = {"teacher": str(teacher), "sizes": ["80k"], "data": "d", "space": {"axes": axes}, "text_only": False}
        dry_run(make_plan(plan), tmp_path / "run", reads_text=False, flops_per_second=1e9, display=Quiet())
    assert prune(teacher, tmp_path / "s", OTHERS, **options).proof is not None


def test_layers_that_a_tower_feeds_are_never_ranked_last(wrapper: Callable[..., Path], tmp_path: Path) -> None:
    space = load_space("default").model_copy(update={"protected_layers": ()})
    teacher, shape = wrapper("qwen3_vl"), {"num_hidden_layers": 1}
    pruned = prune(teacher, tmp_path / "s", shape, scores="random", text_only=False, space=space, display=Quiet())
    assert json.loads((pruned.path / "lineage.json").read_text())["kept_layers"] == [0]


def test_a_model_without_a_tower_and_one_in_memory_are_refused(wrapper: Callable[..., Path], tmp_path: Path) -> None:
    from minitron_nas.testing import tiny_tokenizer

    llama = tiny_checkpoint(tmp_path / "llama", "llama")
    live = (AutoModelForImageTextToText.from_pretrained(wrapper("gemma3")), tiny_tokenizer())
    for teacher, fault in ((llama, "has no such part; give the folder"), (live, "is in memory; give the folder")):
        with pytest.raises(PlanError, match=f"text_only=false keeps what looks at pictures, and .* {fault}"):
            prune(teacher, tmp_path / "s", OTHERS, scores="random", text_only=False, display=Quiet())
