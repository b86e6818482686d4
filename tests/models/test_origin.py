"""Live models whose weights are not those of the folder that they name."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3ForCausalLM, MistralForCausalLM, Mxfp4Config
from transformers.utils import logging

from minitron_nas.errors import CheckpointError
from minitron_nas.models import source
from minitron_nas.models.config import read_config
from minitron_nas.models.source import resolve_teacher
from minitron_nas.models.stock import read_tensor
from minitron_nas.storage.weights import read_headers
from minitron_nas.testing import rewrite_tensors, tiny_checkpoint, tiny_tokenizer


@pytest.fixture(autouse=True)
def _quiet():
    """Without transformers' report of what it made up."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)


@pytest.mark.parametrize(("kind", "model_type"), [(Gemma3ForCausalLM, "gemma3"), (MistralForCausalLM, "mistral3")])
def test_a_text_class_that_found_nothing_in_a_wrappers_folder_is_refused(wrapper, tmp_path, kind, model_type):
    folder = wrapper(model_type, tied=True)
    live = kind.from_pretrained(folder, config=AutoConfig.for_model(**read_config(folder)))
    with pytest.raises(CheckpointError, match=rf"have nothing to do with what .*, a {model_type} whose text part is"):
        resolve_teacher((live, tiny_tokenizer()), tmp_path)


def test_a_live_model_without_a_matrix_of_its_folder_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    rewrite_tensors(folder, {"model.layers.1.mlp.up_proj.weight": None})
    live = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(
        CheckpointError, match=r"1 matrices of the live model \(model\.layers\.1\.mlp\.up_proj\.weight\)"
    ):
        resolve_teacher((live, tiny_tokenizer()), tmp_path / "work")


def test_a_live_model_whose_hub_folder_is_in_the_local_cache_is_held_against_it(tmp_path, monkeypatch):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    live = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    live.name_or_path = live.config._name_or_path = "owner/tiny"
    monkeypatch.setattr(source, "cached_snapshot", lambda name, commit: folder if name == "owner/tiny" else None)
    with pytest.raises(CheckpointError, match="have nothing to do with"):
        resolve_teacher((live, tiny_tokenizer()), tmp_path / "work")


@pytest.mark.parametrize("change", ["none", "trained", "untied", "cut", "inner"])
def test_a_live_model_that_was_changed_since_is_taken(tmp_path, change):
    folder = tiny_checkpoint(tmp_path / "model", "llama", tied=change == "untied")
    if change == "inner":
        AutoModelForCausalLM.from_pretrained(folder).model.save_pretrained(folder)
        rewrite_tensors(folder, {"lm_head.weight": torch.eye(320, 48)})
    live = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        if change == "trained":
            for parameter in live.parameters():
                parameter.add_(torch.randn(parameter.shape) * parameter.std())
        if change == "untied":
            live.lm_head.weight = torch.nn.Parameter(live.model.embed_tokens.weight.clone())
            live.config.tie_word_embeddings = False
        if change == "cut":
            live.model.layers = live.model.layers[:2]
            live.config.num_hidden_layers = 2
    resolve_teacher((live, tiny_tokenizer()), tmp_path / "work")


def test_a_live_model_that_names_no_folder_is_taken(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    live = AutoModelForCausalLM.from_config(AutoConfig.for_model(**read_config(folder)))
    assert resolve_teacher((live, tiny_tokenizer()), tmp_path / "work").architecture.hidden_size == 48


def test_a_live_model_that_transformers_unpacked_is_taken(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "gpt_oss", num_hidden_layers=2, hidden_size=64, intermediate_size=64)
    packed = tmp_path / "packed"
    pack(folder, packed)
    live = AutoModelForCausalLM.from_pretrained(packed, quantization_config=Mxfp4Config(dequantize=True))
    taken = resolve_teacher((live, tiny_tokenizer()), tmp_path / "work")
    experts = live.get_decoder().layers[1].mlp.experts
    assert torch.equal(read_tensor(taken.headers["model.layers.1.mlp.experts.down_proj[2]"]), experts.down_proj[2])


def pack(folder, packed):
    """Turn the experts of a tiny gpt-oss into MXFP4, with numbers of their own."""
    shutil.copytree(folder, packed)
    generator, changes = torch.Generator().manual_seed(0), {}
    for name, header in read_headers(folder).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = header.shape
            blocks = torch.randint(0, 255, (experts, outputs, inputs // 32, 16), generator=generator)
            scales = torch.randint(120, 126, (experts, outputs, inputs // 32), generator=generator)
            changes |= {name: None, f"{name}_blocks": blocks.byte(), f"{name}_scales": scales.byte()}
    rewrite_tensors(packed, changes)
    file = packed / "config.json"
    packing = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": packing}))
