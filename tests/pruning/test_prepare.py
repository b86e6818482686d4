import json

import pytest
import torch
from safetensors.torch import load_file

from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pruning.parts import whole
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.student import cuts
from minitron_nas.testing import rewrite_tensors, tiny_checkpoint, tiny_config, tiny_model, tiny_tokenizer

FAMILIES = ("llama", "mistral", "nemotron", "qwen2", "phi3", "gpt2", "mixtral")
SHAPE = {"intermediate_size": 56, "num_hidden_layers": 3}


def tensors_of(prepared, shape):
    return {part.name: whole(part) for part in cuts(prepared, prepared.architecture.reshaped(shape))}


def sharded(folder, model_type, **changes):
    config = tiny_config(model_type, **changes)
    tiny_model(config).save_pretrained(folder, max_shard_size="60KB")
    tiny_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 3
    return open_checkpoint(folder)


def test_a_teacher_is_opened_with_its_ranking(source):
    teacher = source("qwen2")
    prepared = PreparedTeacher.open(teacher.checkpoint.path, teacher.prepared.folder)
    assert prepared.architecture == teacher.architecture
    assert prepared.config == json.loads((teacher.checkpoint.path / "config.json").read_text())
    assert prepared.layout == teacher.checkpoint.layout
    assert prepared.headers == dict(teacher.checkpoint.headers)
    assert torch.equal(prepared.order.neurons, teacher.order.neurons)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_teacher_in_many_files_gives_the_same_student(source, tmp_path, model_type):
    teacher = source(model_type)
    path = sharded(tmp_path / "teacher", model_type).path
    expected = tensors_of(teacher.prepared, SHAPE)
    found = tensors_of(PreparedTeacher.open(path, teacher.prepared.folder), SHAPE)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_tied_teacher_that_carries_a_copy_of_its_embedding_loses_the_copy(source, tmp_path):
    folder = tiny_checkpoint(tmp_path / "teacher", "llama", tied=True)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite_tensors(folder, {"lm_head.weight": embedding.clone()})
    prepared = PreparedTeacher.open(folder, source("llama", tied=True).prepared.folder)
    assert "lm_head.weight" not in tensors_of(prepared, SHAPE)


@pytest.mark.parametrize(
    ("model_type", "rename"),
    [
        ("gpt2", lambda name: name.removeprefix("transformer.")),
        ("gpt_neox", lambda name: name.replace("embed_out", "lm_head")),
    ],
)
def test_older_names_are_read_and_written_as_todays(source, tmp_path, model_type, rename):
    teacher = source(model_type)
    folder = tiny_checkpoint(tmp_path / "teacher", model_type)
    tensors = load_file(folder / "model.safetensors")
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    rewrite_tensors(folder, dict.fromkeys(tensors) | renamed)
    prepared = PreparedTeacher.open(open_checkpoint(folder).path, teacher.prepared.folder)
    expected, found = tensors_of(teacher.prepared, SHAPE), tensors_of(prepared, SHAPE)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
