"""The one training loop, on Hugging Face's Trainer, for short and full distillation alike."""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import Tensor, distributed
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from minitron_nas.distillation.arguments import training_arguments
from minitron_nas.distillation.checkpoints import last_whole, mark_whole, step_of
from minitron_nas.distillation.head import OutputHead
from minitron_nas.distillation.hidden_states import HiddenStates
from minitron_nas.distillation.intermediate import IntermediateLoss, attached, intermediate_loss, weighed
from minitron_nas.distillation.losses import distillation_loss
from minitron_nas.distillation.schedule import Schedule
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals import OnlineTeacher, TeacherSignal
from minitron_nas.distillation.targets import HiddenTargets, TopKTargets
from minitron_nas.distillation.tokens import PackedTokens
from minitron_nas.distillation.validation import validate
from minitron_nas.errors import NonFiniteLossError
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.ledger import fingerprint

_NOT_DECIDING = {
    *("checkpoint_minutes", "gradient_checkpointing", "micro_batch_sequences", "num_evaluations"),
    *("teacher_signal", "top_k"),  # hidden states say what the teacher says; a top-K signal stands beside this
    *("batch_sequences", "tokens"),  # the schedule says these
}
_LEFT_BY_ACCELERATE = ("forward", "_original_forward", "_is_accelerate_prepared")


@dataclass(frozen=True, slots=True)
class Stream:
    """A token stream with the teacher's signal over it.

    Attributes:
        tokens: The stream.
        signal: The teacher: over the whole vocabulary for validation; None where no loss asks it.
    """

    tokens: PackedTokens
    signal: TeacherSignal | None


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of a training or validation curve; `learning_rate` is None for validation."""

    tokens: int
    kl_nats: float
    loss_nats: float | None
    learning_rate: float | None


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a distillation leaves: its curve, which ends with a validation."""

    curve: tuple[CurvePoint, ...]

    @property
    def final(self) -> CurvePoint:
        """The last validation."""
        return [point for point in self.curve if point.learning_rate is None][-1]


def distill(
    student: Any,
    train: Stream,
    validation: Stream,
    settings: DistillationSettings,
    schedule: Schedule,
    folder: Path,
    seed: int,
    stop_step: int | None = None,
    progress: Progress = silent,
) -> TrainingResult:
    """Train a student to match the teacher, going on from the last whole checkpoint in `folder`.

    A checkpoint that was written for other tokens, settings, schedule or seed is not used.

    Args:
        student: A causal LM with float32 weights; it is trained in place.
        train: Sequences in the order of training; repeated if the schedule is longer.
        validation: Held-out sequences.
        settings: Learning rate, loss and so on.
        schedule: Steps and batch.
        folder: Checkpoints go here; delete it when the student is saved.
        seed: Seeds what the model may draw (dropout).
        stop_step: Stop here with a checkpoint although the schedule goes on; a later call with a
            higher `stop_step` continues.
        progress: Told about optimizer steps, in the first process.

    Raises:
        NonFiniteLossError: If the loss or its gradient becomes NaN or infinite.
        PlanError: If the batch does not divide into micro-batches, DeepSpeed cannot be used as asked, or
            hidden states are to be matched that the signal or a model does not have.
    """
    arguments = training_arguments(settings, schedule, folder, seed, student.config.use_cache)
    last_step = min(stop_step or schedule.num_steps, schedule.num_steps)
    identity = _identity(train.tokens, settings, schedule, seed)
    checkpoint = last_whole(folder, identity)
    matching = intermediate_loss(student.config, train.signal, settings, seed)
    if checkpoint is not None and step_of(checkpoint) >= last_step:
        with attached(student, matching):
            load_model(student, checkpoint / "model.safetensors")
        return _result(json.loads((checkpoint / "trainer_state.json").read_text())["log_history"], schedule)
    if settings.gradient_checkpointing:
        # transformers 5.20 knows it under the second name, which later versions deprecate.
        enable = getattr(student, "activation_checkpointing_enable", None) or student.gradient_checkpointing_enable
        enable()
    with attached(student, matching):
        trainer = _DistillationTrainer(student, train, validation, settings, schedule, arguments, identity, matching)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Control(last_step, schedule.num_steps, settings, progress))
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            # Without this the student would go on computing under autocast, whatever its weights' dtype.
            for name in _LEFT_BY_ACCELERATE:
                student.__dict__.pop(name, None)
    return _result(trainer.state.log_history, schedule)


class _SequenceDataset(Dataset[dict[str, Tensor]]):
    """Training sequences in order, repeated to the schedule's length."""

    def __init__(self, tokens: PackedTokens, schedule: Schedule) -> None:
        self._tokens, self._num_labels = tokens, tokens.num_labels()
        self._batch_sequences = schedule.batch_sequences
        self._length = schedule.num_steps * schedule.batch_sequences

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        index = torch.tensor(position % self._tokens.num_sequences)
        sequence = self._tokens.sequences(index[None])
        return {
            "index": index,
            "input_ids": sequence.input_ids[0],
            "position_ids": sequence.position_ids[0],
            "next_tokens": sequence.labels()[0],
            "batch_labels": self._batch_labels(position),
        }

    def _batch_labels(self, position: int) -> Tensor:
        """Labels of the whole optimizer step that a position belongs to, whichever process takes which part."""
        first = position // self._batch_sequences * self._batch_sequences
        indices = torch.arange(first, first + self._batch_sequences) % self._tokens.num_sequences
        return self._num_labels[indices].sum()


class _DistillationTrainer(Trainer):
    """Trainer whose loss compares final hidden states through both output heads."""

    def __init__(
        self,
        student: Any,
        train: Stream,
        validation: Stream,
        settings: DistillationSettings,
        schedule: Schedule,
        arguments: TrainingArguments,
        identity: str,
        matching: IntermediateLoss | None,
    ) -> None:
        self._sequences = _SequenceDataset(train.tokens, schedule)
        super().__init__(model=student, args=arguments, train_dataset=self._sequences)
        self.loss_is_scaled_for_ga = False
        self._signal, self._validation = train.signal, validation
        self._settings, self._schedule, self._identity = settings, schedule, identity
        self._matching, self._num_layers = matching, student.config.num_hidden_layers
        pairs = matching.pairs if matching is not None else ()
        self._states = HiddenStates(student, {self._num_layers, *(own for _, own in pairs)})
        self._teacher_states = None
        if isinstance(train.signal, OnlineTeacher):
            self._teacher_states = HiddenStates(train.signal.model, {place for place, _ in pairs})

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the distillation loss of a batch."""
        tokens = PackedTokens(inputs["input_ids"], inputs["position_ids"])
        # The output head is applied in chunks by the loss; logits_to_keep=1 keeps the model from applying it.
        output, states = self._states.during(
            lambda: model(
                input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False, logits_to_keep=1
            )
        )
        targets, teacher_states = self._ask_teacher(inputs["index"], tokens)
        share = len(tokens.input_ids) / self._schedule.batch_sequences
        loss, distance = distillation_loss(
            states[self._num_layers].flatten(0, 1),
            OutputHead.of(self.accelerator.unwrap_model(model)),
            inputs["next_tokens"].flatten(),
            targets,
            self._settings,
            num_labels=inputs["batch_labels"][0].clamp(min=1) * share,
            dtype=torch.bfloat16 if self.args.bf16 else None,
        )
        if self._matching is not None:
            loss = loss + weighed(self._matching(states, teacher_states), distance)
        return (loss, output) if return_outputs else loss

    def _ask_teacher(
        self, indices: Tensor, tokens: PackedTokens
    ) -> tuple[HiddenTargets | TopKTargets | None, dict[int, Tensor]]:
        """Return what the teacher says, if the loss asks, and its hidden states that are to be matched."""
        signal = self._signal
        if signal is None or not self._settings.asks_teacher:
            return None, {}

        def ask() -> HiddenTargets | TopKTargets:
            return signal.targets(indices, tokens)

        return (ask(), {}) if self._teacher_states is None else self._teacher_states.during(ask)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate on the held-out stream and log the result."""
        model = self.accelerator.unwrap_model(self.model)
        losses = validate(model, self._validation.tokens, self._validation.signal)
        metrics = {"eval_kl_nats": losses.kl_nats, "eval_loss_nats": losses.loss_nats}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Return the schedule's learning rates."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer,  # type: ignore[arg-type]
                lambda step: self._schedule.learning_rate_factor(step, self._settings),
            )
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self._sequences)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save, then mark the checkpoint as whole once every process has written its part."""
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            mark_whole(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}", self._identity)
        self.accelerator.wait_for_everyone()


class _Control(TrainerCallback):
    """Validates at even distances, checkpoints by the clock, stops at a step and at NaN."""

    def __init__(self, last_step: int, num_steps: int, settings: DistillationSettings, progress: Progress) -> None:
        self._last_step, self._progress = last_step, progress
        self._goes_on_later = last_step < num_steps
        self._evaluation_steps = math.ceil(num_steps / settings.num_evaluations)
        self._interval_seconds = settings.checkpoint_minutes * 60
        self._saved_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Decide what happens after this optimizer step."""
        if state.is_world_process_zero:
            self._progress(state.global_step, self._last_step)
        at_log = state.global_step % state.logging_steps == 0
        control.should_evaluate = state.global_step % self._evaluation_steps == 0
        if state.global_step >= self._last_step:
            control.should_training_stop = True
            control.should_evaluate = True
            control.should_log = True
            control.should_save = self._goes_on_later
        elif at_log and self._is_due(args.device):
            control.should_save = True
            self._saved_at = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop when the loss or its gradient is no number any more."""
        logs = kwargs["logs"]
        for name, words in {"loss": "distillation loss", "grad_norm": "norm of the gradient"}.items():
            if not math.isfinite(logs.get(name, 0.0)):
                raise NonFiniteLossError(
                    f"the {words} is {logs[name]} at step {state.global_step} (learning rate "
                    f"{logs['learning_rate']:.3g}); lower distillation.learning_rate and begin a new run"
                )

    def _is_due(self, device: torch.device) -> bool:
        """Whether a checkpoint is due by the clock of the first process, whom all follow."""
        seconds = torch.tensor(time.monotonic() - self._saved_at, dtype=torch.float32, device=device)
        if distributed.is_initialized():
            distributed.broadcast(seconds, src=0)
        return seconds.item() >= self._interval_seconds


def _identity(tokens: PackedTokens, settings: DistillationSettings, schedule: Schedule, seed: int) -> str:
    """Hash what decides the weights of every step; the first batch stands for the tokens."""
    return fingerprint(
        {
            "tokens": tokens.first(schedule.batch_sequences).fingerprint,
            "settings": settings.model_dump(exclude=_NOT_DECIDING),
            "top_k": settings.top_k if settings.teacher_signal == "top_k" else None,
            "schedule": asdict(schedule),
            "seed": seed,
        }
    )


def _result(history: list[dict[str, Any]], schedule: Schedule) -> TrainingResult:
    return TrainingResult(tuple(point for entry in history if (point := _curve_point(entry, schedule)) is not None))


def _curve_point(entry: dict[str, Any], schedule: Schedule) -> CurvePoint | None:
    tokens = entry["step"] * schedule.tokens_per_step
    if "eval_kl_nats" in entry:
        return CurvePoint(tokens, entry["eval_kl_nats"], entry["eval_loss_nats"], None)
    if "loss" in entry:
        return CurvePoint(tokens, entry["loss"], None, entry["learning_rate"])
    return None
