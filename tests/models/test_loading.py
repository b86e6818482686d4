"""In which dtype models are loaded."""

import pytest
import torch

from minitron_nas.models.loading import load_for_inference, load_for_training
from minitron_nas.testing import tiny_checkpoint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_is_loaded_in_the_compute_dtype_for_inference_and_in_float32_for_training(
    tmp_path, monkeypatch, dtype
):
    folder = tiny_checkpoint(tmp_path, "llama", dtype=torch.bfloat16)
    monkeypatch.setattr("minitron_nas.models.loading.compute_dtype", lambda device: dtype)
    assert {parameter.dtype for parameter in load_for_inference(folder).parameters()} == {dtype}
    assert {parameter.dtype for parameter in load_for_training(folder).parameters()} == {torch.float32}
