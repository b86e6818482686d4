"""The text part of wrappers against the wrappers themselves, which transformers loads and runs."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from minitron_nas.errors import CheckpointError, UnknownFamilyError
from minitron_nas.families.catalog import count_parameters
from minitron_nas.families.wrappers import WRAPPERS
from minitron_nas.models.config import read_config, read_outline
from minitron_nas.models.loading import load_for_training
from minitron_nas.models.source import resolve_teacher
from minitron_nas.models.stock import read_tensor
from minitron_nas.models.text_part import read_text_headers, text_config
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.storage.weights import read_headers
from minitron_nas.testing import rewrite_tensors, tiny_tokenizer

CLASSES = {
    "gemma3": "Gemma3ForCausalLM",
    "mistral3": "MistralForCausalLM",
    "qwen2_5_vl": "Qwen2ForCausalLM",
    "qwen3_vl": "Qwen3ForCausalLM",
    "qwen3_vl_moe": "Qwen3MoeForCausalLM",
}
IDS = torch.arange(10, 40)[None]
"""More than the sliding windows hold."""


@torch.no_grad()
def logits(model):
    if type(model).__name__ == "Llama4ForConditionalGeneration":  # whose own forward pass fails on text
        model = model.language_model
    return model.eval()(input_ids=IDS, use_cache=False).logits


def edited(wrapper, tmp_path, model_type, *, tied=False, **changes):
    """A copy of a tiny wrapper with other keys at the top level of its config; None removes one."""
    folder = shutil.copytree(wrapper(model_type, tied=tied), tmp_path / "edited")
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


@pytest.mark.parametrize(
    ("model_type", "tied"),
    [*((name, name in {"gemma3", "smolvlm"}) for name in WRAPPERS), ("qwen3_vl", True), ("gemma4 e2b", True)],
)
def test_the_text_part_gives_the_logits_of_the_wrapper_to_the_bit(wrapper, tmp_path, model_type, tied):
    folder = wrapper(model_type, tied=tied)
    checkpoint = resolve_teacher(folder, tmp_path)
    teacher, whole = load_for_training(checkpoint.path), AutoModelForImageTextToText.from_pretrained(folder)
    assert type(teacher).__name__ == CLASSES.get(model_type, type(teacher).__name__)
    assert torch.equal(logits(teacher), logits(whole))
    assert checkpoint.num_parameters == sum(parameter.numel() for parameter in teacher.parameters())
    assert checkpoint.num_parameters < sum(parameter.numel() for parameter in whole.parameters())
    assert checkpoint.architecture.tie_word_embeddings is tied
    assert checkpoint.tower is not None
    told = (model_type.partition(" ")[0], True, folder)
    assert (checkpoint.tower.model_type, checkpoint.tower.is_there, checkpoint.path) == told


@pytest.mark.parametrize("model_type", ["gemma3", "qwen3_vl", "qwen3_vl_moe"])
def test_a_text_part_that_was_loaded_is_saved_as_a_text_model(wrapper, tmp_path, model_type):
    teacher = load_for_training(wrapper(model_type))
    teacher.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == teacher.config.model_type
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path)),
        logits(teacher),
        rtol=0,
        atol=1e-5 * ("moe" in model_type),
    )


@pytest.mark.parametrize("model_type", CLASSES)
def test_a_live_wrapper_gives_its_text_part_and_stays_as_it_is(wrapper, tmp_path, model_type):
    tied = model_type == "gemma3"
    live = AutoModelForImageTextToText.from_pretrained(wrapper(model_type, tied=tied))
    for parameter in live.parameters():
        parameter.data = parameter.data.clone()  # where it lies in a file decides how experts are multiplied
    before = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    checkpoint = resolve_teacher((live, tiny_tokenizer()), tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    assert checkpoint.tower is not None
    assert (type(stock).__name__, checkpoint.tower.model_type) == (CLASSES[model_type], model_type)
    assert not checkpoint.tower.is_there
    assert torch.equal(logits(stock), logits(live))
    assert not any("vision" in name or "visual" in name for name in read_text_headers(checkpoint.path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in live.state_dict().items())


def test_what_stands_at_a_wrappers_top_level_holds_for_its_text_part(wrapper, tmp_path):
    folder = edited(wrapper, tmp_path, "gemma3", tied=True, eos_token_id=[1, 106], torch_dtype="bfloat16", dtype=None)
    config = read_config(folder)
    assert (config["model_type"], config["eos_token_id"], config["bos_token_id"]) == ("gemma3_text", [1, 106], 1)
    assert config["dtype"] == "bfloat16"


def test_qwen_turns_text_by_plain_rotary_positions(wrapper):
    rope = read_config(wrapper("qwen3_vl"))["rope_parameters"]
    assert rope == {"rope_type": "default", "rope_theta": 1e4}


def test_a_config_from_before_text_config_is_read(wrapper, tmp_path):
    content = json.loads((wrapper("qwen2_5_vl") / "config.json").read_text())
    text = content.pop("text_config")
    rope = {"type": "mrope", "mrope_section": [2, 1, 1]}
    flat = {**text, **content, "rope_scaling": rope, "rope_theta": 1e4}
    del flat["rope_parameters"]
    expected = read_config(wrapper("qwen2_5_vl"))
    assert {**text_config("config.json", flat), "dtype": None} == {**expected, "dtype": None}


def test_without_a_word_on_tied_embeddings_the_text_models_own_default_holds():
    text = {"model_type": "mistral", "hidden_size": 64}
    assert text_config("", {"model_type": "mistral3", "text_config": text})["tie_word_embeddings"] is False
    text = {"model_type": "gemma3_text", "hidden_size": 64}
    assert text_config("", {"model_type": "gemma3", "text_config": text})["tie_word_embeddings"] is True


def test_gemma_3_4b_has_its_published_total_of_text():
    text = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }  # fmt: skip
    published = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    config = text_config("config.json", published)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(config) == total == 3_880_263_168
    assert config["rope_parameters"]["full_attention"]["factor"] == 8.0


def test_a_tensor_that_neither_the_text_part_nor_another_part_explains_is_named(wrapper, tmp_path):
    folder = edited(wrapper, tmp_path, "qwen3_vl")
    rewrite_tensors(folder, {"model.hearing.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match=r"'model\.hearing\.weight' of shape .* is not in the table of .*'qwen3'"):
        resolve_teacher(folder, tmp_path)


def test_two_tensors_of_one_name_are_refused(wrapper, tmp_path):
    folder = edited(wrapper, tmp_path, "qwen3_vl")
    rewrite_tensors(folder, {"model.norm.weight": torch.zeros(48)})
    with pytest.raises(CheckpointError, match=r"holds two tensors 'model\.norm\.weight' of its text part"):
        read_text_headers(folder)


def test_a_wrapper_whose_text_part_is_unknown_is_refused_with_its_relative():
    text = {"model_type": "glm_moe_dsa", "hidden_size": 64, "num_hidden_layers": 2, "n_routed_experts": 4}
    message = r"'glm_moe_dsa' is no known family; .*this is the text part of a llava; nearest to it is 'glm4_moe'"
    with pytest.raises(UnknownFamilyError, match=message):
        text_config("config.json", {"model_type": "llava", "text_config": text})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"architectures": ["Gemma3ForSequenceClassification"]}, "taken out of ...ForConditionalGeneration classes"),
        ({"text_config": 3}, "text_config=3 must be an object"),
        (
            {"text_config": {"num_hidden_layers": 10**12}},
            r"num_hidden_layers=1000000000000 must be an integer in 0\.\.",
        ),
        ({"text_config": {"hidden_size": "wide"}}, "transformers refuses .*config.json"),
        ({"quantization_config": {"quant_method": "fp8"}}, "holds a quantised model"),
    ],
)
def test_a_wrapper_that_cannot_be_read_is_refused(wrapper, tmp_path, changes, fault):
    folder = edited(wrapper, tmp_path, "gemma3", **changes)
    with pytest.raises(CheckpointError, match=fault):
        read_outline(folder, "gemma")


@torch.no_grad()
def test_experts_that_lie_in_stacks_are_read_as_transformers_reads_them(wrapper, tmp_path):
    folder = shutil.copytree(wrapper("qwen3_5_moe"), tmp_path / "stacked")
    rewrite_tensors(folder, in_stacks(load_file(folder / "model.safetensors")))
    names = read_headers(folder)
    assert sum(name.endswith(".mlp.experts.gate_up_proj") for name in names) == 4
    assert not any(".experts.0." in name for name in names)
    checkpoint = resolve_teacher(folder, tmp_path)  # compares the logits of what is cut with those of the wrapper
    whole = AutoModelForImageTextToText.from_pretrained(folder)
    assert torch.equal(logits(load_for_training(checkpoint.path)), logits(whole))
    one_by_one = AutoModelForImageTextToText.from_pretrained(wrapper("qwen3_5_moe"))
    torch.testing.assert_close(logits(whole), logits(one_by_one), rtol=0, atol=1e-5)
    pruned = prune(folder, tmp_path / "pruned", {"num_experts": 3, "moe_intermediate_size": 24}, scores="magnitude")
    student = AutoModelForCausalLM.from_pretrained(pruned.path)
    assert type(student).__name__ == "Qwen3_5MoeForCausalLM"
    assert student.get_decoder().layers[0].mlp.experts.gate_up_proj.shape == (3, 48, 48)


@torch.no_grad()
@pytest.mark.parametrize("width", [40, 24, 48])
def test_stacks_that_lie_the_other_way_round_are_read_as_transformers_reads_them(wrapper, tmp_path, width):
    folder = shutil.copytree(wrapper("qwen3_vl_moe"), tmp_path / "turned")
    rewrite_tensors(folder, turned(load_file(folder / "model.safetensors"), width))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["moe_intermediate_size"] = width  # where twice it is hidden_size, transformers turns no ups
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = resolve_teacher(folder, tmp_path)  # compares the logits of what is cut with those of the wrapper
    whole = AutoModelForImageTextToText.from_pretrained(folder)
    assert torch.equal(logits(load_for_training(folder)), logits(whole))
    live = resolve_teacher((whole, tiny_tokenizer()), tmp_path / "live")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(live.path)), logits(whole))
    assert live.headers.keys() == checkpoint.headers.keys()
    assert all(
        torch.equal(read_tensor(live.headers[name]), read_tensor(header)) for name, header in checkpoint.headers.items()
    )
    pruned = prune(folder, tmp_path / "pruned", {"num_experts": 3, "moe_intermediate_size": 16}, scores="magnitude")
    student = AutoModelForCausalLM.from_pretrained(pruned.path)
    assert type(student).__name__ == "Qwen3MoeForCausalLM"
    assert student.get_decoder().layers[0].mlp.experts.gate_up_proj.shape == (3, 32, 48)


def turned(tensors, width):
    """The experts as the published files of Qwen3-VL hold them, with so many neurons each: (inputs, outputs)."""
    draw = torch.Generator().manual_seed(0)
    sizes = {"gate_up_proj": (48, 2 * width), "down_proj": (width, 48)}
    return {
        name: torch.randn(4, *sizes[name.rpartition(".")[2]], generator=draw) / 7
        for name in tensors
        if ".mlp.experts." in name
    }


def test_a_row_that_does_not_say_how_stacks_may_lie_is_found_by_their_tensors(wrapper, tmp_path, monkeypatch):
    folder = shutil.copytree(wrapper("qwen3_vl_moe"), tmp_path / "turned")
    rewrite_tensors(folder, turned(load_file(folder / "model.safetensors"), 40))
    monkeypatch.setitem(WRAPPERS, "qwen3_vl_moe", replace(WRAPPERS["qwen3_vl_moe"], either_way={}))
    with pytest.raises(
        CheckpointError, match=r"experts\.0\.down_proj\.weight' has shape \(40, 48\), .* for \(48, 40\)"
    ):
        resolve_teacher(folder, tmp_path)


def in_stacks(tensors):
    """The experts of every layer as files of Qwen 3.5 hold them: in a tensor of gates and ups, and one of downs."""
    changes = {name: None for name in tensors if re.search(r"experts\.\d", name)}
    for layer in {name.partition(".mlp.experts.")[0] for name in changes}:
        gates, ups, downs = (
            torch.stack([tensors[f"{layer}.mlp.experts.{expert}.{part}_proj.weight"] for expert in range(4)])
            for part in ("gate", "up", "down")
        )
        changes[f"{layer}.mlp.experts.gate_up_proj"] = torch.cat([gates, ups], dim=1)
        changes[f"{layer}.mlp.experts.down_proj"] = downs
    return changes
