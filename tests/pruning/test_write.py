import json
import os
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minitron_nas.errors import CheckpointError, DiskSpaceError
from minitron_nas.pruning import write as surgery
from minitron_nas.pruning.export import write_student
from minitron_nas.pruning.parts import total_bytes, whole
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.student import build_student, cuts, student_config
from minitron_nas.pruning.write import surgery_key, write_weights
from minitron_nas.storage import atomic
from minitron_nas.storage.lineage import Lineage, read_lineage
from minitron_nas.storage.weights import file_headers
from minitron_nas.testing import rewrite_tensors, tiny_checkpoint

FAMILIES = ("llama", "gpt2", "gemma2", "mixtral", "phi3")
SHAPE = {"intermediate_size": 56, "num_hidden_layers": 3}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def cuts_of(teacher, shape=None):
    return cuts(teacher.prepared, teacher.architecture.reshaped(shape or SHAPE))


def read(folder):
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_is_written_is_what_is_built_in_memory_in_the_teachers_type(source, tmp_path, model_type, dtype):
    teacher = source(model_type, dtype=dtype)
    parts = cuts_of(teacher)
    write_weights(parts, tmp_path)
    found = read(tmp_path)
    assert found.keys() == {part.name for part in parts}
    for part in parts:
        assert found[part.name].dtype == dtype
        assert torch.equal(found[part.name], whole(part))


def test_blocks_of_any_size_give_the_same_file(source, tmp_path, monkeypatch):
    parts = cuts_of(source("llama"), {"hidden_size": 36, **SHAPE})
    write_weights(parts, tmp_path)
    expected = (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr("minitron_nas.storage.weights.BLOCK_BYTES", 500)
    (tmp_path / "again").mkdir()
    write_weights(parts, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == expected


def test_shards_have_an_index_that_transformers_loads(source, tmp_path, prompt):
    teacher = source("llama")
    target = teacher.architecture.reshaped(SHAPE)
    write_weights(cuts_of(teacher), tmp_path, shard_bytes=60_000)
    names = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert len(names) > 2
    (tmp_path / "config.json").write_text(json.dumps(student_config(teacher.prepared, target)))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(prompt).logits, build_student(teacher.prepared, target, torch.float32)(prompt).logits)


def test_the_slices_of_a_stack_are_read_and_written_one_by_one_and_become_one_tensor(source, tmp_path, monkeypatch):
    teacher = source("gpt_oss")
    parts = cuts_of(teacher, {"intermediate_size": 56, "num_experts": 3, "hidden_size": 40})
    slices = [part for part in parts if "layers.2.mlp.experts.down_proj[" in part.name]
    assert len(slices) == 3
    most = []
    monkeypatch.setattr("minitron_nas.storage.weights.BLOCK_BYTES", 500)
    monkeypatch.setattr(surgery, "_write_all", noting(surgery._write_all, most))
    write_weights(parts, tmp_path, shard_bytes=20_000)
    found = read(tmp_path)
    assert torch.equal(found["model.layers.2.mlp.experts.down_proj"], torch.stack([whole(part) for part in slices]))
    assert not any("[" in name for name in found)
    assert max(most) <= 500
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(found)


def noting(function, sizes):
    def noted(descriptor, data, offset):
        sizes.append(data.nbytes)
        function(descriptor, data, offset)

    return noted


def test_progress_counts_what_is_written_and_read_back(source, tmp_path):
    parts, calls = cuts_of(source("llama")), []
    write_weights(parts, tmp_path, lambda done, total: calls.append((done, total)), shard_bytes=60_000)
    assert calls == sorted(calls)
    assert calls[-1] == (2 * total_bytes(parts), 2 * total_bytes(parts))


def test_an_attempt_that_broke_off_goes_on_with_the_shards_that_are_left(source, tmp_path, monkeypatch):
    parts, renamed = cuts_of(source("llama")), []
    replace = os.replace

    def twice(old, new):
        if len(renamed) == 2:
            raise KeyboardInterrupt
        renamed.append(new)
        replace(old, new)

    monkeypatch.setattr(surgery.os, "replace", twice)
    with pytest.raises(KeyboardInterrupt):
        write_weights(parts, tmp_path, shard_bytes=60_000)
    monkeypatch.setattr(surgery.os, "replace", replace)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("model-*.safetensors")}
    assert len(before) == 2
    cut = min(before)
    os.truncate(cut, cut.stat().st_size // 2)
    del before[cut]
    write_weights(parts, tmp_path, shard_bytes=60_000)
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert read(tmp_path).keys() == {part.name for part in parts}


def test_a_folder_that_broke_off_is_taken_over_by_the_same_surgery_only(source, tmp_path):
    parts = cuts_of(source("llama"))
    key = surgery_key(parts, {"a": 1})
    for same in (True, False):
        with pytest.raises(KeyboardInterrupt), atomic.whole_folder(tmp_path / "student", key) as partial:
            (partial / "done").touch()
            raise KeyboardInterrupt
        other = key if same else surgery_key(cuts_of(source("llama"), {"intermediate_size": 32}), {"a": 1})
        with atomic.whole_folder(tmp_path / "student", other) as partial:
            assert (partial / "done").exists() is same
        assert [file.name for file in tmp_path.iterdir()] == ["student"]


def test_tensors_that_were_repaired_again_are_another_surgery(source, tmp_path):
    teacher, name = source("llama"), "model.layers.1.mlp.down_proj.weight"
    save_file({name: torch.ones(48, 56)}, tmp_path / "layer.safetensors")
    keys = set()
    for nanoseconds in (1, 1, 2):
        os.utime(tmp_path / "layer.safetensors", ns=(nanoseconds, nanoseconds))
        repaired = file_headers(tmp_path / "layer.safetensors")
        parts = cuts(teacher.prepared, teacher.architecture.reshaped(SHAPE), repaired)
        keys.add(surgery_key(parts, {}))
    assert len(keys) == 2


def test_a_byte_that_the_disk_changes_is_noticed(source, tmp_path, monkeypatch):
    pread = os.pread
    monkeypatch.setattr(surgery.os, "pread", lambda *args: bytes([pread(*args)[0] ^ 1]) + pread(*args)[1:])
    with pytest.raises(CheckpointError, match=r"tensor 'model.embed_tokens.weight' reads back .* otherwise"):
        write_weights(cuts_of(source("llama")), tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_value_that_is_not_finite_is_named(source, tmp_path):
    folder = tiny_checkpoint(tmp_path / "teacher", "llama")
    rewrite_tensors(folder, {"model.norm.weight": torch.full((48,), float("nan"))})
    prepared = PreparedTeacher.open(folder, source("llama").prepared.folder)
    with pytest.raises(CheckpointError, match=r"tensor 'model.norm.weight' holds NaN or infinity"):
        write_weights(cuts(prepared, prepared.architecture.reshaped(SHAPE)), tmp_path)


def test_too_little_disk_is_refused_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = atomic.shutil._ntuple_diskusage(total=10**6, used=10**6, free=1000)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DiskSpaceError, match="the student's weights needs"):
        write_weights(cuts_of(source("llama")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_student_too_large_for_memory_is_written_without_a_proof(source, tmp_path, monkeypatch):
    teacher = source("llama")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    target = teacher.architecture.reshaped(SHAPE)
    assert write_student(teacher.prepared, target, tmp_path / "student", Lineage(size="90k")) is None
    assert read_lineage(tmp_path / "student") == Lineage(size="90k")
    assert json.loads((tmp_path / "student" / "lineage.json").read_text())["proof"] is None
    assert not (tmp_path / "student" / "proof.json").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").config.intermediate_size == 56
