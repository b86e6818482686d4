"""What Trainer is told, and what is refused before it starts."""

import json

import pytest
import torch
from transformers import TrainingArguments

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.training import arguments as module
from minitron_nas.distillation.training.arguments import check_engine, micro_batch, training_arguments
from minitron_nas.distillation.training.schedule import Schedule
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


def test_one_process_takes_one_gpu_of_a_machine_with_more(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: self._n_gpu))
    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(_four_gpus))
    made = arguments(tmp_path, 4, micro_batch_sequences=2)
    assert (made.n_gpu, made.train_batch_size) == (1, 2)


def _four_gpus(self):
    if not hasattr(self, "_n_gpu"):
        self._n_gpu = 4
    return torch.device("cpu")


@pytest.mark.parametrize(("num_steps", "every"), [(1, 1), (500, 1), (501, 2), (5000, 10)])
def test_the_training_curve_has_at_most_500_points(tmp_path, num_steps, every):
    assert arguments(tmp_path, num_steps=num_steps).logging_steps == every


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision_follows_the_device(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("minitron_nas.distillation.training.arguments.compute_dtype", lambda device: dtype)
    assert arguments(tmp_path).bf16 is (dtype == torch.bfloat16)


def test_settings_reach_the_optimizer(tmp_path):
    made = arguments(tmp_path, learning_rate=0.5, weight_decay=0.25, adam_beta2=0.75, max_grad_norm=0.125)
    assert (made.learning_rate, made.weight_decay, made.adam_beta2, made.max_grad_norm) == (0.5, 0.25, 0.75, 0.125)


@pytest.mark.parametrize(("num_processes", "expected"), [(1, 4), (2, 2), (4, 1)])
def test_a_micro_batch_is_at_most_a_processs_share_of_the_batch(num_processes, expected):
    settings = DistillationSettings(micro_batch_sequences=4)
    assert micro_batch(settings, Schedule(8, 4, 16), num_processes) == expected


def test_every_parameter_takes_part_in_every_step(tmp_path):
    assert arguments(tmp_path).ddp_find_unused_parameters is False


def profile(folder, **content):
    file = folder / "mine.json"
    file.write_text(json.dumps(content))
    return DistillationSettings(deepspeed=str(file))


def test_a_deepspeed_profile_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(PlanError, match="'zero-9' is neither a file nor one of zero-0, zero-1, zero-2, zero-3"):
        check_engine(DistillationSettings(deepspeed="zero-9"))


@pytest.mark.parametrize("stage", range(4))
def test_the_profiles_of_the_package_are_accepted(stage):
    check_engine(DistillationSettings(deepspeed=f"zero-{stage}"))


@pytest.mark.parametrize(
    ("section", "advice"),
    [
        ({"optimizer": {"type": "Lamb"}}, "holds 'optimizer'; leave it out, the optimizer is AdamW"),
        ({"scheduler": {"type": "WarmupLR"}}, "holds 'scheduler'; leave it out, distillation"),
        ({"fp16": {"enabled": True}}, "holds 'fp16'; leave it out, bfloat16 needs no loss scale"),
        ({"bf16": {"enabled": True}}, "holds 'bf16' with ZeRO stage 0; leave it out, or use stage 1"),
    ],
)
def test_what_the_settings_decide_is_refused_in_a_profile(tmp_path, section, advice):
    with pytest.raises(PlanError, match=f"mine.json {advice}"):
        check_engine(profile(tmp_path, **section))


def test_deepspeed_without_a_launcher_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(PlanError, match="needs a launcher that starts one process per device, such as torchrun"):
        arguments(tmp_path, deepspeed="zero-2")


def test_a_tracker_that_transformers_does_not_know_is_refused():
    with pytest.raises(PlanError, match="report_to: 'notebook' is none of .*mlflow.*tensorboard.*wandb"):
        check_engine(DistillationSettings(report_to=("notebook",)))


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(PlanError, match="report_to: wandb is not installed; pip install wandb"):
        check_engine(DistillationSettings(report_to=("wandb",)))


def test_tensorboard_needs_a_folder_that_outlives_the_checkpoints(monkeypatch):
    monkeypatch.setattr(module, "get_available_reporting_integrations", lambda: ["tensorboard"])
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    with pytest.raises(PlanError, match="TENSORBOARD_LOGGING_DIR"):
        check_engine(DistillationSettings(report_to=("tensorboard",)))


def test_reports_are_off_unless_asked_for(tmp_path):
    assert arguments(tmp_path).report_to == []
    assert arguments(tmp_path, report_to=("wandb",), run_name="one").report_to == ["wandb"]
