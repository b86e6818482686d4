"""The model that surgery reads against the one that transformers loads."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_nas.errors import CheckpointError
from minitron_nas.families.catalog import layouts
from minitron_nas.models import agreement
from minitron_nas.models.agreement import check_agreement
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.source import resolve_teacher
from minitron_nas.models.stock import read_tensor
from minitron_nas.testing import rewrite_tensors, tiny_checkpoint

FIRST, LAST = (f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 3))


@pytest.fixture
def llama(tmp_path):
    return tiny_checkpoint(tmp_path / "llama", "llama")


@pytest.mark.parametrize("most_bytes", [8 << 30, 1])
@pytest.mark.parametrize("model_type", layouts())
def test_every_family_agrees_whole_or_cut_to_its_first_layer(tmp_path, monkeypatch, model_type, most_bytes):
    monkeypatch.setattr(agreement, "_MOST_BYTES", most_bytes)
    tied = model_type not in {"gpt_neox", "nemotron_h", "phi3"}
    check_agreement(open_checkpoint(tiny_checkpoint(tmp_path, model_type, tied=tied)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_stored_type_agrees(tmp_path, dtype):
    check_agreement(open_checkpoint(tiny_checkpoint(tmp_path, "llama", dtype=dtype)))


@pytest.mark.parametrize(
    ("most_bytes", "name", "noticed"),
    [(8 << 30, FIRST, True), (8 << 30, LAST, True), (1, FIRST, True), (1, LAST, False)],
)
def test_other_weights_are_noticed_where_they_are_looked_at(llama, monkeypatch, most_bytes, name, noticed):
    checkpoint = open_checkpoint(llama)
    other = checkpoint.headers[name]
    monkeypatch.setattr(agreement, "_MOST_BYTES", most_bytes)
    monkeypatch.setattr(agreement, "read_tensor", lambda header: read_tensor(header) * (1.01 if header == other else 1))
    if noticed:
        with pytest.raises(CheckpointError, match=r"can be read in two ways: .* weights in model\.safetensors; load"):
            check_agreement(checkpoint)
    else:
        check_agreement(checkpoint)


def test_what_transformers_would_make_up_is_named(llama, tmp_path):
    checkpoint = open_checkpoint(llama)
    shutil.copytree(llama, tmp_path / "other")
    rewrite_tensors(tmp_path / "other", {"model.norm.weight": None})
    with pytest.raises(CheckpointError, match=r"finds no model\.norm\.weight in .* and would make up its values"):
        check_agreement(replace(checkpoint, path=tmp_path / "other"))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"pad_token_id": 10**9}, "transformers cannot load .*; see that"),
        ({"hidden_act": "nothing"}, "transformers cannot load"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, r"rope_theta=0\.0 must be a number above 0"),
        ({"rope_parameters": {"full_attention": {"rope_theta": -1}}}, r"rope_theta=-1 must be a number above 0"),
        ({"rope_theta": "ten"}, r"rope_theta='ten' must be a number above 0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": float("inf")}}, "rope_theta=inf must be"),
        ({"rms_norm_eps": -1e9}, "computes NaN or infinity although every weight is finite"),
        ({"rope_parameters": {"rope_type": "nothing", "rope_theta": 1.0}}, "transformers (cannot load|refuses)"),
    ],
)
def test_what_a_config_makes_impossible_is_one_error(llama, changes, fault):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=fault):
        resolve_teacher(llama, llama)


def test_a_tensor_that_is_not_finite_is_named_by_itself(llama):
    rewrite_tensors(llama, {FIRST: torch.full((48, 96), float("nan"))})
    with pytest.raises(CheckpointError, match=f"tensor '{FIRST}' holds NaN or infinity"):
        check_agreement(open_checkpoint(llama, read_values=False))


@pytest.mark.parametrize("beside", ["whole file", "unnamed shard", "consolidated", "variant", "original"])
def test_files_that_transformers_passes_over_are_passed_over(tmp_path, beside):
    folder, other = tiny_checkpoint(tmp_path / "a", "llama", 1), tiny_checkpoint(tmp_path / "b", "llama", 2)
    tensors = load_file(folder / "model.safetensors")
    if beside in {"whole file", "unnamed shard"}:
        halves = {f"model-0000{part}-of-00002.safetensors": sorted(tensors)[part - 1 :: 2] for part in (1, 2)}
        for file, names in halves.items():
            save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map = {name: file for file, names in halves.items() for name in names}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    name = {
        "whole file": "model.safetensors",
        "unnamed shard": "model-00003-of-00003.safetensors",
        "consolidated": "consolidated.safetensors",
        "variant": "model.fp16.safetensors",
        "original": "original/model.safetensors",
    }[beside]
    if beside == "unnamed shard":
        (folder / "model.safetensors").unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(other / "model.safetensors", folder / name)
    checkpoint = resolve_teacher(folder, tmp_path)
    wanted = load_file(other / "model.safetensors") if beside == "whole file" else tensors
    assert all(torch.equal(read_tensor(header), wanted[name]) for name, header in checkpoint.headers.items())


@pytest.mark.parametrize("model_type", ["deepseek_v2", "llama"])
def test_a_model_of_one_layer_agrees(tmp_path: Path, model_type: str) -> None:
    one = {"first_k_dense_replace": 1} if model_type == "deepseek_v2" else {}
    check_agreement(open_checkpoint(tiny_checkpoint(tmp_path / "model", model_type, num_hidden_layers=1, **one)))
