"""What a training takes, computed by hand, and the words in which that is told."""

from dataclasses import replace

import pytest

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.settings import CorrectionTraining, DistillationSettings
from minitron_nas.distillation.training.memory import TrainingMemory
from minitron_nas.errors import MinitronNasError
from minitron_nas.families.catalog import layout_of
from minitron_nas.testing import tiny_config
from minitron_nas.testing.tiny import TINY_E2B

SHAPE, LLAMA = Architecture("llama", 3, 10, 40, 2, 1, 5, vocab_size=20), layout_of("llama")
PER_LAYER = 6 * 10 + 2 * (2 + 1) * 5 + 4 * 40  # values of one token


def estimate(**changes):
    return TrainingMemory.estimate(
        **{"num_parameters": 800, "architecture": SHAPE, "layout": LLAMA, "micro_batch_tokens": 7, "value_bytes": 2}
        | changes
    )


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (0, (3200, 3200, 6400)),  # float32 weights, gradients, two moments
        (1, (3200, 3200, 2400)),  # a quarter of the moments and of the weights' copy
        (2, (3200, 800, 2400)),
        (3, (800, 800, 2400)),
    ],
)
def test_zero_shards_optimizer_gradients_and_weights_in_this_order(stage, expected):
    memory = estimate(zero_stage=stage, num_processes=4)
    assert (memory.weights_bytes, memory.gradients_bytes, memory.optimizer_bytes) == expected


def test_activations_are_kept_in_every_layer_or_only_inputs_of_layers():
    assert estimate().activations_bytes == 7 * 3 * PER_LAYER * 2
    assert estimate(gradient_checkpointing=True).activations_bytes == 7 * (3 * 10 + PER_LAYER) * 2
    assert estimate(gradient_checkpointing=0.34).activations_bytes == 7 * (10 + 2 * PER_LAYER) * 2


def test_ffns_that_are_twice_as_wide_count_as_often_as_they_are():
    layout = layout_of("gemma4_text")
    renamed = replace(layout, config_keys={**layout.config_keys, "double_wide_ffn": ("twice",)})
    config = tiny_config("gemma4_text", **TINY_E2B).to_dict()
    shape = architecture_of({**config, "twice": config.pop("use_double_wide_mlp")}, renamed)
    found = estimate(architecture=shape, layout=renamed).activations_bytes
    assert found == 7 * 7 * (6 * 48 + 2 * (6 + 2) * 8 + 4 * (96 + 96 * 3 // 7)) * 2


def test_the_error_says_what_takes_how_much_and_what_to_change():
    memory = TrainingMemory(4_000_000_000, 3_000_000_000, 2_000_000_000, 1_500_000_000)
    error = memory.error(DistillationSettings(), 8, 0)
    assert isinstance(error, MinitronNasError)
    assert isinstance(error, MemoryError)
    assert str(error) == (
        "training ran out of memory; a process needs about 4 GB for weights, 3 GB for gradients, 2 GB for the "
        "optimizer and 1.5 GB for activations, beside the teacher; lower distillation.micro_batch_sequences (now 8), "
        "or set distillation.gradient_checkpointing=true, or shard over more processes with "
        "distillation.deepspeed=zero-3 and runner.num_processes, or lower text.sequence_length"
    )


def test_nothing_is_advised_that_is_so_already():
    error = TrainingMemory(1, 1, 1, 1).error(DistillationSettings(gradient_checkpointing=True), 1, 3)
    assert str(error).endswith("beside the teacher; lower text.sequence_length")


def test_a_correction_is_told_of_its_own_settings():
    assert str(TrainingMemory(1, 1, 1, 1).error(CorrectionTraining(loss="lm"), 2, 0)).endswith(
        "lower correct.micro_batch_sequences (now 2), or set correct.gradient_checkpointing=true, or train few weights "
        "with correct.weights=lora, or lower text.sequence_length"
    )
