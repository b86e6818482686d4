"""The door to trl: direct preference optimization, held against the student as it began.

Source: Rafailov et al. 2023 (arXiv 2305.18290).
"""

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from minitron_nas.alignment.settings import AlignmentSettings
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.errors import NonFiniteLossError, PlanError, TrainingMemoryError
from minitron_nas.execution.device import announce_device, compute_dtype, pick_device
from minitron_nas.execution.runner import is_out_of_memory
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.loading import load_for_training
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.machine import machine_error

if TYPE_CHECKING:
    from trl.trainer.dpo_trainer import DPOTrainer

UNTRAINED_LOSS = math.log(2)
"""The loss of a student that is its own reference: no answer is preferred."""

_WARMUP_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids of a prompt and of two answers to it."""

    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a student is to prefer, and how it learns it.

    Attributes:
        train: In the order of training; repeated if the schedule is longer.
        held_out: What validations are taken on.
        settings: Learning rate, beta and so on.
        schedule: Steps and batch, in pairs.
        seed: Of what the model may draw, and of the order of pairs.
    """

    train: Sequence[Pair]
    held_out: Sequence[Pair]
    settings: AlignmentSettings
    schedule: Schedule
    seed: int


@dataclass(frozen=True, slots=True)
class PreferencePoint:
    """A student on held-out preferences.

    Attributes:
        step: Optimizer steps so far.
        loss: -log sigmoid of the margin.
        margin: beta times how much more the log-probability of what is chosen has risen since training began than that
            of what is rejected.
        accuracy: Share of the preferences whose margin is above 0.
    """

    step: int
    loss: float
    margin: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Preferred:
    """What a training on preferences has left.

    Attributes:
        curve: Of the validations, from the untrained student's on.
        weights: A stock folder with the weights of the best, the student's own if training made it worse.
    """

    curve: tuple[PreferencePoint, ...]
    weights: Path

    @property
    def best(self) -> PreferencePoint:
        """The validation with the lowest loss, the first of equals."""
        return min(self.curve, key=lambda point: point.loss if math.isfinite(point.loss) else math.inf)


def require_trl() -> None:
    """Refuse to go on without trl.

    Raises:
        PlanError: If it is not installed; names the extra that brings it.
    """
    if find_spec("trl") is None:
        raise PlanError("--method dpo needs trl; pip install 'minitron-nas[align]', or choose sft or kd")


def prefer(
    student: Path,
    preferences: Preferences,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress = silent,
) -> Preferred:
    """Train a student to prefer what was chosen, going on from the last whole checkpoint in `folder`.

    What the student as it began says of every answer is computed once, before the first step, so that it need not
    stay in memory.

    Args:
        student: A stock folder.
        preferences: Pairs, and how they are learned.
        folder: Of the checkpoints of this training.
        tokenizer: Saved beside checkpoints, and says what fills up a batch.
        progress: Told about optimizer steps.

    Raises:
        NonFiniteLossError: If the loss becomes NaN or infinite.
        TrainingMemoryError: If memory does not hold it.
        MachineError: If a disk is full, read-only, failing or gone.
    """
    model = load_for_training(student)
    try:
        with _quiet():
            trainer = _trainer(model, preferences, folder, tokenizer, progress)
            trainer.train(resume_from_checkpoint=_last_whole(folder))
    except Exception as error:
        if is_out_of_memory(error):
            raise TrainingMemoryError(
                f"{preferences.settings.micro_batch_sequences} pairs at once do not fit into memory; lower "
                "align.micro_batch_sequences, set align.gradient_checkpointing=true, or shorten text.sequence_length"
            ) from error
        if (fault := machine_error(error, folder)) is not None:
            raise fault from error
        raise
    points = [_point(entry) for entry in trainer.state.log_history if "eval_loss" in entry]
    result = Preferred((PreferencePoint(0, UNTRAINED_LOSS, 0.0, 0.0), *points), student)
    return Preferred(result.curve, _checkpoint(folder, result.best.step)) if result.best.step else result


def _trainer(
    model: CausalLM, preferences: Preferences, folder: Path, tokenizer: PreTrainedTokenizerBase, progress: Progress
) -> "DPOTrainer":
    from trl.trainer.dpo_config import DPOConfig  # deferred: trl is an extra
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    class Trainer(DPOTrainer):
        """Takes pairs in tokens as they are: trl would write them once more, and add tokens to their ends."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    settings, schedule, device = preferences.settings, preferences.schedule, pick_device()
    announce_device()
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad_id = next(number for number in ids if number is not None)
    model.generation_config = GenerationConfig()  # one that contradicts itself could not be saved
    distance = math.ceil(schedule.num_steps / settings.num_evaluations)
    micro = min(settings.micro_batch_sequences, schedule.batch_sequences)
    arguments = DPOConfig(
        output_dir=str(folder),
        max_steps=schedule.num_steps,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=schedule.batch_sequences // micro,
        learning_rate=settings.peak_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(_WARMUP_SHARE * schedule.num_steps),
        bf16=compute_dtype(device) == torch.bfloat16,
        use_cpu=device.type == "cpu",
        gradient_checkpointing=settings.gradient_checkpointing,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=distance,
        save_steps=distance,
        save_total_limit=2,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=distance,
        logging_nan_inf_filter=False,
        beta=settings.beta,
        max_length=None,
        precompute_ref_log_probs=True,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        seed=preferences.seed,
        use_cache=model.config.use_cache,
        dataloader_pin_memory=device.type == "cuda",
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # Trainer would copy the model to all of this machine's GPUs and multiply the batch
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=DataCollatorForPreference(pad_token_id=pad_id),
        train_dataset=_dataset(preferences.train),
        eval_dataset=_dataset(preferences.held_out),
        processing_class=tokenizer,
        callbacks=[_Watch(progress)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class _Watch(TrainerCallback):
    """Validates and saves after the last step too, tells how far it is, and stops where the loss is no number."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress(state.global_step, state.max_steps)
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = kwargs["logs"].get("loss", 0.0)
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the preference loss is {loss} at step {state.global_step}; lower --learning-rate and begin anew with "
                "another --out"
            )


def _dataset(pairs: Sequence[Pair]) -> datasets.Dataset:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return datasets.Dataset.from_dict({name: [list(getattr(pair, name)) for pair in pairs] for name in names})


def _point(entry: Mapping[str, Any]) -> PreferencePoint:
    return PreferencePoint(
        entry["step"], entry["eval_loss"], entry["eval_rewards/margins"], entry["eval_rewards/accuracies"]
    )


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def _last_whole(folder: Path) -> str | None:
    """Return the last checkpoint whose state, which Trainer writes last, is there and can be read."""
    steps = sorted(
        (int(path.name.rpartition("-")[2]) for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")), reverse=True
    )
    for step in steps:
        try:
            json.loads((_checkpoint(folder, step) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(_checkpoint(folder, step))
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep trl's and datasets' bars off the terminal; the display has its own."""
    before, shown = os.environ.get("TQDM_DISABLE"), not datasets.are_progress_bars_disabled()
    os.environ["TQDM_DISABLE"] = "1"
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what trl calls of transformers
            yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before
        if shown:
            datasets.enable_progress_bars()
