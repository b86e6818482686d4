"""What Trainer is told, and what is refused before it starts."""

import json

import pytest
import torch

from minitron_nas.distillation.arguments import training_arguments
from minitron_nas.distillation.schedule import Schedule
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.errors import PlanError


def arguments(folder, batch=4, num_steps=8, **settings):
    return training_arguments(DistillationSettings(**settings), Schedule(num_steps, batch, 16), folder, 0, True)


@pytest.mark.parametrize(
    ("batch", "micro", "expected"), [(4, 1, (1, 4)), (4, 2, (2, 2)), (4, 4, (4, 1)), (4, 64, (4, 1))]
)
def test_micro_batches_and_accumulation_make_up_the_batch(tmp_path, batch, micro, expected):
    made = arguments(tmp_path, batch, micro_batch_sequences=micro)
    assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == expected


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "multiple"), [(3, 2, 1, 2), (6, 4, 1, 4), (1, 1, 2, 2), (6, 2, 2, 4)]
)
def test_a_batch_that_does_not_divide_is_refused(tmp_path, monkeypatch, batch, micro, processes, multiple):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(
        PlanError,
        match=rf"a batch of {batch} sequences does not divide into micro-batches of {micro} on {processes} "
        rf"processes; choose distillation.batch_sequences as a multiple of {multiple}",
    ):
        arguments(tmp_path, batch, micro_batch_sequences=micro)


@pytest.mark.parametrize(("num_steps", "every"), [(1, 1), (500, 1), (501, 2), (5000, 10)])
def test_the_training_curve_has_at_most_500_points(tmp_path, num_steps, every):
    assert arguments(tmp_path, num_steps=num_steps).logging_steps == every


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision_follows_the_device(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("minitron_nas.distillation.arguments.compute_dtype", lambda device: dtype)
    assert arguments(tmp_path).bf16 is (dtype == torch.bfloat16)


def test_settings_reach_the_optimizer(tmp_path):
    made = arguments(tmp_path, learning_rate=0.5, weight_decay=0.25, adam_beta2=0.75, max_grad_norm=0.125)
    assert (made.learning_rate, made.weight_decay, made.adam_beta2, made.max_grad_norm) == (0.5, 0.25, 0.75, 0.125)


def test_a_deepspeed_profile_that_does_not_exist_is_refused_with_those_that_do(tmp_path):
    with pytest.raises(PlanError, match="'zero-9' is neither a file nor one of zero-1, zero-2"):
        arguments(tmp_path, deepspeed="zero-9")


def test_a_deepspeed_stage_that_splits_the_output_head_is_refused(tmp_path):
    profile = tmp_path / "mine.json"
    profile.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    with pytest.raises(PlanError, match=r"mine.json asks for ZeRO stage 3, .*; use stage 1 or 2"):
        arguments(tmp_path, deepspeed=str(profile))


def test_deepspeed_without_a_launcher_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(PlanError, match="needs a launcher that starts one process per device, such as torchrun"):
        arguments(tmp_path, deepspeed="zero-2")
