import hashlib
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from minitron_nas.errors import DiskSpaceError
from minitron_nas.families.checkpoint import open_checkpoint
from minitron_nas.pruning.prepare import PreparedTeacher, prepare
from minitron_nas.pruning.slice import student_tensors
from minitron_nas.testing import rewrite_tensors, tiny_checkpoint, tiny_config, tiny_model, tiny_tokenizer

FAMILIES = ("llama", "mistral", "nemotron", "qwen2")


def sharded(folder, model_type, **changes):
    config = tiny_config(model_type, **changes)
    tiny_model(config).save_pretrained(folder, max_shard_size="60KB")
    tiny_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 3
    return open_checkpoint(folder)


def hashes(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_sorted_teacher_computes_what_the_teacher_does(source, prompt, tmp_path, model_type, tied):
    # Sorting renames channels, neurons, heads and groups; no sum changes but for its order. The model
    # computes its norms in float32 whatever its dtype.
    teacher = source(model_type, dtype=torch.float64, tied=tied)
    for file in (teacher.prepared.path / "model.safetensors", teacher.checkpoint.path / "config.json"):
        shutil.copyfile(file, tmp_path / file.name)
    sorted_model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(sorted_model(prompt).logits, teacher.model(prompt).logits, rtol=0, atol=1e-5)


def test_a_sorted_tensor_has_the_best_channels_first(source):
    teacher = source("llama")
    tensors = load_file(teacher.prepared.path / "model.safetensors")
    by_score = torch.argsort(teacher.scores.hidden, descending=True)
    assert torch.equal(tensors["model.embed_tokens.weight"], teacher.tensors["model.embed_tokens.weight"][:, by_score])


def test_what_was_prepared_can_be_opened_again(source):
    teacher = source("qwen2")
    loaded = PreparedTeacher.load(teacher.prepared.path)
    assert loaded.architecture == teacher.architecture
    assert loaded.config == teacher.checkpoint.config
    assert loaded.layout == teacher.checkpoint.layout
    assert torch.equal(loaded.order.neurons, teacher.order.neurons)


def test_the_teacher_stays_as_it_is(source, tmp_path):
    teacher = source("llama")
    before = hashes(teacher.checkpoint.path)
    prepare(teacher.checkpoint, teacher.order, tmp_path / "prepared")
    assert hashes(teacher.checkpoint.path) == before


def test_preparing_twice_gives_the_same_bytes(source, tmp_path):
    teacher = source("llama")
    prepare(teacher.checkpoint, teacher.order, tmp_path / "prepared")
    assert hashes(tmp_path / "prepared") == hashes(teacher.prepared.path)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_teacher_in_many_files_gives_the_same_student(source, tmp_path, model_type):
    teacher = source(model_type)
    prepared = prepare(sharded(tmp_path / "teacher", model_type), teacher.order, tmp_path / "prepared")
    target = teacher.architecture.reshaped({"hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 3})
    expected = dict(student_tensors(teacher.prepared, target))
    found = dict(student_tensors(prepared, target))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_tied_teacher_that_carries_a_copy_of_its_embedding_loses_the_copy(source, tmp_path):
    folder = tiny_checkpoint(tmp_path / "teacher", "llama", tied=True)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite_tensors(folder, {"lm_head.weight": embedding.clone()})
    prepared = prepare(open_checkpoint(folder), source("llama", tied=True).order, tmp_path / "prepared")
    assert "lm_head.weight" not in load_file(prepared.path / "model.safetensors")


def test_too_little_disk_is_refused_before_anything_is_written(source, tmp_path, monkeypatch):
    teacher = source("llama")
    usage = shutil._ntuple_diskusage(total=10**6, used=10**6, free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DiskSpaceError, match=r"the sorted copy of the teacher needs .* GB in .*/prepared"):
        prepare(teacher.checkpoint, teacher.order, tmp_path / "prepared")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_that_breaks_off_leaves_nothing(source, tmp_path):
    teacher = source("llama")
    too_few = teacher.order.__class__(
        **{name: getattr(teacher.order, name) for name in ("hidden", "kv_groups", "group_heads", "layers")},
        neurons=teacher.order.neurons[:1],
    )
    with pytest.raises(IndexError):
        prepare(teacher.checkpoint, too_few, tmp_path / "prepared")
    assert list(tmp_path.iterdir()) == []
