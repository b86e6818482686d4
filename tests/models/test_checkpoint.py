import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.stock import read_tensor
from minitron_nas.testing import rewrite_tensors, tiny_checkpoint


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "nemotron", "qwen2"])
def test_each_family_passes_its_check_with_the_parameters_of_the_real_model(tmp_path, model_type, tied):
    folder = tiny_checkpoint(tmp_path / "model", model_type, tied=tied)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.num_parameters == AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    assert checkpoint.architecture.tie_word_embeddings is tied
    assert checkpoint.layout.model_type == model_type
    assert checkpoint.config == json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}])
@pytest.mark.parametrize("model_type", ["llama", "nemotron"])
def test_biases_that_the_config_turns_on_are_expected(tmp_path, model_type, changes):
    folder = tiny_checkpoint(tmp_path / "model", model_type, **changes)
    assert open_checkpoint(folder).num_parameters == AutoModelForCausalLM.from_pretrained(folder).num_parameters()


def test_a_sharded_checkpoint_passes(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    expected = open_checkpoint(folder).num_parameters
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert open_checkpoint(folder).num_parameters == expected


def test_the_fingerprint_is_that_of_the_content_and_not_of_the_place(tmp_path):
    first = tiny_checkpoint(tmp_path / "first", "llama")
    shutil.copytree(first, tmp_path / "second")
    fingerprint = open_checkpoint(first).fingerprint
    assert len(fingerprint) == 16
    assert open_checkpoint(tmp_path / "second").fingerprint == fingerprint


def test_the_fingerprint_changes_when_one_weight_changes(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    before = open_checkpoint(folder).fingerprint
    norm = load_file(folder / "model.safetensors")["model.norm.weight"]
    norm[3] += 1
    rewrite_tensors(folder, {"model.norm.weight": norm})
    assert open_checkpoint(folder).fingerprint != before


def test_the_fingerprint_changes_when_the_config_changes(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    before = open_checkpoint(folder).fingerprint
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert open_checkpoint(folder).fingerprint != before


def test_a_checkpoint_follows_its_files(tmp_path):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "before", "llama"))
    (tmp_path / "before").rename(tmp_path / "after")
    moved = checkpoint.at(tmp_path / "after")
    assert (moved.path, moved.fingerprint) == (tmp_path / "after", checkpoint.fingerprint)
    assert all(torch.isfinite(read_tensor(header)).all() for header in moved.headers.values())


def test_another_tokenizer_has_another_fingerprint(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    checkpoint = open_checkpoint(folder)
    (folder / "README.md").write_text("of no tokenizer")
    before = checkpoint.tokenizer_fingerprint()
    (folder / "README.md").unlink()
    assert checkpoint.tokenizer_fingerprint() == before
    with open(folder / "tokenizer.json", "a") as file:
        file.write(" ")
    assert checkpoint.tokenizer_fingerprint() != before
    assert open_checkpoint(folder).fingerprint == checkpoint.fingerprint
