"""Speed and memory, measured in a process of its own."""

import pytest

from minitron_nas.errors import MinitronNasError
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.evaluation.speed import measure_speed
from minitron_nas.testing import tiny_checkpoint

SETTINGS = EvaluationSettings(prompt_tokens=8, decode_tokens=2, repeats=1)


def test_a_tiny_model_has_a_speed_and_needs_more_memory_than_its_weights(tmp_path):
    path = tiny_checkpoint(tmp_path, "llama")
    speed = measure_speed(path, SETTINGS)
    assert speed.prefill_tokens_per_second > 0
    assert speed.decode_tokens_per_second > 0
    assert (path / "model.safetensors").stat().st_size < speed.peak_memory_bytes < 8e9


def test_a_folder_that_cannot_be_loaded_is_an_error_of_one_line(tmp_path):
    with pytest.raises(MinitronNasError, match=rf"measuring the speed of {tmp_path} failed: \S") as caught:
        measure_speed(tmp_path, SETTINGS)
    assert "\n" not in str(caught.value)
