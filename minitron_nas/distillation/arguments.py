"""What Hugging Face's Trainer is told."""

import json
import math
import os
from pathlib import Path

import torch
from transformers import TrainingArguments

from minitron_nas.distillation.schedule import Schedule
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.errors import PlanError
from minitron_nas.execution.device import compute_dtype, pick_device
from minitron_nas.resources import resource, resource_names

_LOG_POINTS = 500
_LAST_ZERO_STAGE = 2


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
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which Trainer imports, need not search and warn
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    micro = min(settings.micro_batch_sequences, schedule.batch_sequences)
    if schedule.batch_sequences % (micro * world_size):
        raise PlanError(
            f"a batch of {schedule.batch_sequences} sequences does not divide into micro-batches of {micro} on "
            f"{world_size} processes; choose distillation.batch_sequences as a multiple of {micro * world_size}"
        )
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.num_steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=schedule.batch_sequences // (micro * world_size),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm,
        bf16=compute_dtype(device) == torch.bfloat16,
        use_cpu=device.type == "cpu",
        deepspeed=str(_deepspeed_json(settings.deepspeed)) if settings.deepspeed else None,
        save_strategy="no",
        eval_strategy="no",
        logging_steps=math.ceil(schedule.num_steps / _LOG_POINTS),
        logging_nan_inf_filter=False,
        report_to="none",
        seed=seed,
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        use_cache=use_cache,
        dataloader_pin_memory=device.type == "cuda",
        # Every parameter learns in every step, also what only the loss uses and a search of the output would miss.
        ddp_find_unused_parameters=False,
    )


def _deepspeed_json(name: str) -> Path:
    known = resource_names("runners", ".json")
    if not Path(name).is_file() and name not in known:
        raise PlanError(f"distillation.deepspeed: {name!r} is neither a file nor one of {', '.join(known)}")
    path = Path(name) if Path(name).is_file() else resource("runners", f"{name}.json")
    stage = json.loads(path.read_text()).get("zero_optimization", {}).get("stage", 0)
    if stage > _LAST_ZERO_STAGE:
        raise PlanError(
            f"distillation.deepspeed: {path} asks for ZeRO stage {stage}, which splits the output head, but the loss "
            f"reads it as a whole; use stage 1 or {_LAST_ZERO_STAGE}"
        )
    if "LOCAL_RANK" not in os.environ:
        raise PlanError("distillation.deepspeed needs a launcher that starts one process per device, such as torchrun")
    return path
