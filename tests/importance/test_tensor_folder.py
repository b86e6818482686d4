import os
from pathlib import Path

import pytest
import torch

from minitron_nas.importance.tensor_folder import TensorFolder


def test_a_tensor_comes_back_under_its_name(tmp_path: Path) -> None:
    folder = TensorFolder(tmp_path / "tensors")
    assert list(folder) == []
    folder["b.weight"] = torch.arange(6.0).reshape(2, 3).T
    folder["a.weight"] = torch.zeros(2, dtype=torch.bfloat16)
    again = TensorFolder(tmp_path / "tensors")
    assert torch.equal(again["b.weight"], torch.arange(6.0).reshape(2, 3).T)
    assert (list(again), len(again), again["a.weight"].dtype) == (["a.weight", "b.weight"], 2, torch.bfloat16)


def test_what_is_removed_is_gone(tmp_path: Path) -> None:
    folder = TensorFolder(tmp_path)
    folder["a"] = torch.ones(1)
    del folder["a"]
    assert "a" not in folder
    for action in (folder.__getitem__, folder.__delitem__):
        with pytest.raises(KeyError, match="a"):
            action("a")


def test_what_was_cut_is_not_there(tmp_path: Path) -> None:
    folder = TensorFolder(tmp_path)
    folder["a"] = torch.ones(100)
    (file,) = tmp_path.iterdir()
    os.truncate(file, file.stat().st_size // 2)
    assert "a" not in folder
    folder["a"] = torch.ones(100)
    assert "a" in folder
