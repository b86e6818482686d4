"""What Hugging Face's Trainer is told."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.training.overrides import check_trainer
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.errors import PlanError
from minitron_nas.execution.device import announce_device, compute_dtype, pick_device
from minitron_nas.resources import resource, resource_names
from minitron_nas.storage.atomic import read_json

_LOG_POINTS = 500
_REFUSED_SECTIONS = {
    "optimizer": "the optimizer is AdamW with what distillation.* says",
    "scheduler": "distillation.* says how the learning rate changes",
    "fp16": "bfloat16 needs no loss scale",
}
_FILLED_BY_TRAINER = {
    "gradient_clipping": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}


def training_arguments(
    settings: DistillationSettings, schedule: Schedule, folder: Path, seed: int, use_cache: bool
) -> TrainingArguments:
    """Translate settings and schedule for this process, on its device, among its launcher's processes.

    Args:
        settings: Learning rate, micro-batch and so on.
        schedule: Steps and batch, over all processes.
        folder: Of the checkpoints.
        seed: Seeds what the model may draw.
        use_cache: What the student's config says; Trainer would write its own default into it.

    Raises:
        PlanError: If the batch does not divide into micro-batches, or DeepSpeed cannot be used as asked.
    """
    device = pick_device()
    announce_device()  # where a process was started by hand
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    micro = micro_batch(settings, schedule, num_processes)
    half = compute_dtype(device) == torch.bfloat16
    profile = _deepspeed_profile(settings.deepspeed) if settings.deepspeed else None
    if profile is not None:
        if "LOCAL_RANK" not in os.environ:
            raise PlanError(
                "distillation.deepspeed needs a launcher that starts one process per device, such as torchrun"
            )
        if "bf16" not in profile and half:
            profile["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.num_steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=schedule.batch_sequences // (micro * num_processes),
        learning_rate=settings.peak_learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm,
        bf16=half if profile is None else _keeps_bfloat16_weights(profile, half),
        use_cpu=device.type == "cpu",
        deepspeed=profile,
        save_strategy="no",
        eval_strategy="no",
        logging_steps=math.ceil(schedule.num_steps / _LOG_POINTS),
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to) or "none",
        run_name=settings.run_name,
        seed=seed,
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        use_cache=use_cache,
        dataloader_pin_memory=device.type == "cuda",
        # Every parameter learns in every step, also what only the loss uses and a search of the output would miss.
        ddp_find_unused_parameters=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # Trainer would copy the model to all of this machine's GPUs and multiply the batch
    return arguments


def micro_batch(settings: DistillationSettings, schedule: Schedule, num_processes: int) -> int:
    """Return how many sequences go through a forward pass: what the settings say, at most a process' share.

    Args:
        settings: May ask for fewer.
        schedule: Steps and batch, over all processes.
        num_processes: Over which the batch is divided.

    Raises:
        PlanError: If the batch does not divide into such micro-batches.
    """
    micro = _micro_batch(settings, schedule, num_processes)
    if schedule.batch_sequences % (micro * num_processes):
        raise PlanError(
            f"a batch of {schedule.batch_sequences} sequences does not divide into micro-batches of {micro} on "
            f"{num_processes} processes; choose {settings.section}.batch_sequences as a multiple of "
            f"{micro * num_processes}"
        )
    return micro


def most_processes(settings: DistillationSettings, schedule: Schedule, num_devices: int) -> int:
    """Return the largest number of processes, at most one a device, over which micro-batches divide a batch.

    Args:
        settings: Sequences of a micro-batch.
        schedule: Steps and batch, over all processes.
        num_devices: Of this machine or cluster.
    """
    numbers = range(1, max(num_devices, 1) + 1)
    dividing = (n for n in numbers if schedule.batch_sequences % (_micro_batch(settings, schedule, n) * n) == 0)
    return max(dividing, default=1)


def _micro_batch(settings: DistillationSettings, schedule: Schedule, num_processes: int) -> int:
    return min(settings.micro_batch_sequences, max(schedule.batch_sequences // num_processes, 1))


def zero_stage(settings: DistillationSettings) -> int:
    """Return the stage of the settings' DeepSpeed JSON, 0 without DeepSpeed.

    Args:
        settings: May name one.

    Raises:
        PlanError: If the JSON cannot be used; says what to do.
    """
    return int(_deepspeed_profile(settings.deepspeed)["zero_optimization"]["stage"]) if settings.deepspeed else 0


def _keeps_bfloat16_weights(profile: dict[str, Any], half: bool) -> bool:
    """Whether a DeepSpeed JSON wants bfloat16 weights; "auto" follows the device."""
    enabled = profile.get("bf16", {}).get("enabled", False)
    return half if enabled == "auto" else bool(enabled)


def check_engine(settings: DistillationSettings) -> None:
    """Refuse before any work what a training could not use.

    Args:
        settings: DeepSpeed JSON and trackers.

    Raises:
        PlanError: If transformers, the DeepSpeed JSON or a tracker of `report_to` cannot be used; says what to do.
    """
    check_trainer()
    if settings.deepspeed is not None:
        _deepspeed_profile(settings.deepspeed)
    for name in settings.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise PlanError(f"distillation.report_to: {name!r} is none of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        if name not in get_available_reporting_integrations():
            raise PlanError(f"distillation.report_to: {name} is not installed; pip install {name}")
    if "tensorboard" in settings.report_to and "TENSORBOARD_LOGGING_DIR" not in os.environ:
        raise PlanError(
            "distillation.report_to: tensorboard needs a folder in the environment variable TENSORBOARD_LOGGING_DIR"
        )


def _deepspeed_profile(name: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON and fill in what the settings say."""
    known = resource_names("runners", ".json")
    if not Path(name).is_file() and name not in known:
        raise PlanError(f"distillation.deepspeed: {name!r} is neither a file nor one of {', '.join(known)}")
    path = Path(name) if Path(name).is_file() else resource("runners", f"{name}.json")
    profile: dict[str, Any] = read_json(path)
    for section, instead in _REFUSED_SECTIONS.items():
        if section in profile:
            raise PlanError(f"distillation.deepspeed: {path} holds {section!r}; leave it out, {instead}")
    stage = profile.setdefault("zero_optimization", {}).setdefault("stage", 0)
    if "bf16" in profile and not stage:
        raise PlanError(f"distillation.deepspeed: {path} holds 'bf16' with ZeRO stage 0; leave it out, or use stage 1")
    return {**_FILLED_BY_TRAINER, **profile}
