import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_nas.models.stock import model_from_tensors, read_entries, read_tensor
from minitron_nas.storage import weights
from minitron_nas.storage.weights import read_headers
from minitron_nas.testing import tiny_checkpoint, tiny_config

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_is_read_to_the_bit(tmp_path, dtype):
    tensors = {"one": torch.randn(7, 3).to(dtype), "other": torch.randn(5).to(dtype)}
    tensors["scalar"] = torch.randn(()).to(dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    headers = read_headers(tmp_path)
    assert all(torch.equal(read_tensor(headers[name]), tensor) for name, tensor in tensors.items())
    assert all(read_tensor(headers[name]).dtype == dtype for name in tensors)


@pytest.mark.parametrize("indices", [[], [0], [6], [1, 2, 5], list(range(7))])
@pytest.mark.parametrize("block_bytes", [1, 12, 1000])
def test_entries_are_those_of_the_whole_tensor_however_it_is_cut_into_blocks(
    tmp_path, monkeypatch, indices, block_bytes
):
    tensor = torch.randn(7, 3).bfloat16()
    save_file({"one": tensor}, tmp_path / "model.safetensors")
    monkeypatch.setattr(weights, "BLOCK_BYTES", block_bytes)
    wanted = torch.tensor(indices, dtype=torch.int64)
    assert torch.equal(read_entries(read_headers(tmp_path)["one"], wanted), tensor[wanted])


def test_a_table_that_misses_a_tensor_is_a_defect_that_names_it(tmp_path):
    tensors = load_file(tiny_checkpoint(tmp_path, "llama") / "model.safetensors")
    del tensors["model.norm.weight"]
    with pytest.raises(RuntimeError, match=r"family table of llama and transformers disagree on .*model\.norm\.weight"):
        model_from_tensors(tiny_config("llama").to_dict(), tensors, torch.float32)
