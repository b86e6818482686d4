"""The one training loop, on Hugging Face's Trainer, for short and full distillation alike."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from signal import SIGTERM
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer import TRAINER_STATE_NAME

from minitron_nas.architecture.config import architecture_of
from minitron_nas.distillation.loss.inner_states import InnerStates
from minitron_nas.distillation.loss.intermediate import intermediate_loss
from minitron_nas.distillation.loss.losses import Counted
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.settings import num_recomputed
from minitron_nas.distillation.signals.targets import HiddenTargets, TopKTargets
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.distillation.training.arguments import training_arguments, zero_stage
from minitron_nas.distillation.training.best import BestWeights
from minitron_nas.distillation.training.checkpoints import (
    STUDENT,
    copy_weights,
    last_whole,
    load_state,
    load_weights,
    save_weights,
    step_of,
)
from minitron_nas.distillation.training.control import Control
from minitron_nas.distillation.training.curve import SEQUENCE_KL, TrainingResult
from minitron_nas.distillation.training.lesson import Lesson
from minitron_nas.distillation.training.memory import TrainingMemory
from minitron_nas.distillation.training.objective import Objective
from minitron_nas.distillation.training.overrides import check_trainer
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.distillation.training.writer import CheckpointWriter
from minitron_nas.errors import TrainingMemoryError
from minitron_nas.execution.compiler import as_written, compiled_modules
from minitron_nas.execution.deepspeed import ZeroOptimizer, begin_moments
from minitron_nas.execution.device import compute_dtype, hold_memory
from minitron_nas.execution.preemption import on_stop, stopped
from minitron_nas.execution.runner import is_out_of_memory
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.attention import attend_by_document, attends_over_lengths
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.layer_model import decoder_layers
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.machine import machine_error
from minitron_nas.text.tokens import PackedTokens


def distill(
    student: CausalLM,
    lesson: Lesson,
    folder: Path,
    stop_step: int | None = None,
    progress: Progress = silent,
    trained: Path | None = None,
) -> TrainingResult:
    """Train a student to match the teacher, going on from the last whole checkpoint in `folder`.

    A checkpoint that was written for other tokens, settings, schedule or seed is not used; one that was
    written by another engine or on another number of processes is. SIGTERM writes a checkpoint after the
    step that is under way.

    Args:
        student: A causal LM with float32 weights; it is trained in place, to the end.
        lesson: What it is taught, in which steps.
        folder: Checkpoints go here; delete it when the student is saved.
        stop_step: Stop here with a checkpoint although the schedule goes on; a later call with a
            higher `stop_step` continues.
        progress: Told about optimizer steps, in the first process.
        trained: A safetensors file; the first process writes the weights of the best validation to it, by what the
            lesson's validations are judged by. The curve then begins with a validation of the untrained student,
            whose weights count, too.

    Raises:
        CheckpointError: If the checkpoint to go on from is not what was written.
        MachineError: If a disk is full, read-only, failing or gone.
        NonFiniteLossError: If the loss or its gradient becomes NaN or infinite.
        TrainingMemoryError: If memory does not hold it; says what takes how much.
        PlanError: If the batch does not divide into micro-batches, transformers or DeepSpeed cannot be used as
            asked, or hidden states are to be matched that the signal or a model does not have.
        PreemptedError: After SIGTERM.
    """
    check_trainer()
    settings, schedule, identity = lesson.settings, lesson.schedule, lesson.identity
    arguments = training_arguments(settings, schedule, folder, lesson.seed, student.config.use_cache)
    last_step = min(stop_step or schedule.num_steps, schedule.num_steps)
    checkpoint = last_whole(folder, identity)
    history, best = _history(checkpoint, last_step), None
    if trained is not None:
        best = BestWeights(folder, trained, last_step, lesson.judge, history, arguments.process_index == 0)
    objective = _objective(student, lesson)
    if checkpoint is not None and step_of(checkpoint) >= last_step:
        if best is None:
            load_weights(checkpoint, objective)
        elif arguments.process_index == 0:
            best.export(partial(copy_weights, checkpoint, STUDENT))
        return TrainingResult.of(history, settings, schedule, lesson.judge)
    if settings.gradient_checkpointing:
        _recompute_activations(student, settings.gradient_checkpointing)
    arguments.eval_on_start = best is not None and checkpoint is None
    hold_memory(arguments.device)
    asked_to_stop: list[int] = []
    writer = CheckpointWriter(folder, identity, arguments, best.stand if best is not None else lambda: None)
    compiles = settings.compiles_layers(arguments.device.type)
    with on_stop(asked_to_stop.append), _compiled(student, compiles), closing(writer):
        control = Control(last_step, schedule.num_steps, settings, writer, asked_to_stop, progress)
        trainer = _DistillationTrainer(objective, lesson, arguments, writer, checkpoint, control, best)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            writer.finish()
        except Exception as error:
            if is_out_of_memory(error):
                raise _memory(student, lesson, arguments) from error
            if (fault := machine_error(error, folder)) is not None:
                raise fault from error
            raise
        if control.preempted:
            signum = next(iter(asked_to_stop), SIGTERM)  # it may have come to another process
            raise stopped(signum, f"the same command goes on from {writer.last_whole()}")
        if best is not None:
            writes = trainer.is_world_process_zero()
            best.export(lambda file: save_weights(file, student, writes))
    return TrainingResult.of(trainer.state.log_history, settings, schedule, lesson.judge)


def _objective(student: CausalLM, lesson: Lesson) -> Objective:
    beside = intermediate_loss(student.config, lesson.train.signal, lesson.settings, lesson.seed)
    return Objective(student, lesson.settings, beside)


class _SequenceDataset(Dataset[dict[str, Any]]):
    """Training sequences in order, repeated to the schedule's length."""

    def __init__(self, tokens: PackedTokens, schedule: Schedule) -> None:
        self._tokens, self._batch_sequences = tokens, schedule.batch_sequences
        self._length = schedule.num_steps * schedule.batch_sequences
        part = tokens.first(self._length)  # a trial trains on a small part of the stream
        self._num_labels, self._num_counted = part.num_labels(), part.num_counted()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = position % self._tokens.num_sequences
        sequence = self._tokens.sequences(torch.tensor([index]))
        item = {
            "index": index,
            "input_ids": sequence.input_ids[0],
            "position_ids": sequence.position_ids[0],
            "next_tokens": sequence.labels()[0],
            "batch_labels": self._of_batch(self._num_labels, position),
        }
        if sequence.counts_all:
            return item
        return {**item, "counted": sequence.counted()[0], "batch_counted": self._of_batch(self._num_counted, position)}

    def _of_batch(self, counts: Tensor, position: int) -> Tensor:
        """Sum of the whole optimizer step that a position belongs to, whichever process takes which part."""
        first = position // self._batch_sequences * self._batch_sequences
        indices = torch.arange(first, first + self._batch_sequences) % self._tokens.num_sequences
        return counts[indices].sum()


def _batch(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return sequences as a batch; their positions in the stream stay numbers, for which no device has to be waited."""
    indices = tuple(item.pop("index") for item in items)
    return {**default_data_collator(items), "index": indices}


class _DistillationTrainer(Trainer):
    """Trainer whose loss compares final hidden states, and whose checkpoints any engine reads."""

    def __init__(
        self,
        objective: Objective,
        lesson: Lesson,
        arguments: TrainingArguments,
        writer: CheckpointWriter,
        checkpoint: Path | None,
        control: Control,
        best: BestWeights | None,
    ) -> None:
        self._objective, self._lesson, self._writer, self._best = objective, lesson, writer, best
        self._sequences = _SequenceDataset(lesson.train.tokens, lesson.schedule)
        super().__init__(model=objective, args=arguments, data_collator=_batch, train_dataset=self._sequences)
        self.remove_callback(PrinterCallback)
        self.add_callback(control)
        self.loss_is_scaled_for_ga = False
        self._first_step = step_of(checkpoint) if checkpoint else 0
        self._teacher_states = None
        matching, signal = objective.intermediate, lesson.train.signal
        if matching is not None and isinstance(signal, OnlineTeacher):
            self._teacher_states = InnerStates(signal.model, [place for place, _ in matching.pairs])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the distillation loss of a batch."""
        tokens = PackedTokens(inputs["input_ids"], inputs["position_ids"])
        # The teacher speaks outside of the student's forward pass: under ZeRO-3 it is an engine of its own.
        targets, teacher_states = self._ask_teacher(torch.tensor(inputs["index"]), tokens)
        share = len(tokens.input_ids) / self._lesson.schedule.batch_sequences
        counted = Counted(inputs["next_tokens"], inputs["batch_labels"][0].clamp(min=1) * share)
        if "counted" in inputs:  # all sequences of a text have it, or none
            num_tokens = inputs["batch_counted"][0].clamp(min=1) * share
            counted = counted._replace(mask=inputs["counted"], num_tokens=num_tokens)
        return model(tokens.input_ids, tokens.position_ids, counted, targets, teacher_states)

    @torch.no_grad()
    def _ask_teacher(
        self, indices: Tensor, tokens: PackedTokens
    ) -> tuple[HiddenTargets | TopKTargets | None, dict[int, Tensor]]:
        """Return what the teacher says, if the loss asks, and its hidden states that are to be matched."""
        signal = self._lesson.train.signal
        if signal is None or not self._lesson.settings.asks_teacher:
            return None, {}

        def ask() -> HiddenTargets | TopKTargets:
            return signal.targets(indices, tokens)

        return (ask(), {}) if self._teacher_states is None else self._teacher_states.during(ask)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate on the held-out stream and log the result."""
        student = self._objective.student
        with as_written(_layers(student)):  # they would be compiled again for validation's sizes
            losses = validate(student, self._lesson.validation.tokens, self._lesson.validation.signal)
        metrics = {"eval_kl_nats": losses.kl_nats, "eval_loss_nats": losses.loss_nats}
        self.log(dict(metrics))
        entry: dict[str, Any] = self.state.log_history[-1]
        entry[SEQUENCE_KL] = list(losses.sequence_kl_nats)  # which no tracker takes
        if self._best is not None:
            self._best.judge(self.state.global_step, metrics, student)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """Return the schedule's learning rates from the first step of this call."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer,  # type: ignore[arg-type]
                lambda step: self._lesson.schedule.learning_rate_factor(self._first_step + step, self._lesson.settings),
            )
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> SequentialSampler:
        return SequentialSampler(self._sequences)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> Any:
        """Prepare without a checkpoint, whose engine may have been another one, and load it into this engine."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)  # type: ignore[no-untyped-call]
        begin_moments(self._engine_optimizer(), self._first_step)
        if resume_from_checkpoint is not None:
            load_state(Path(resume_from_checkpoint), self._objective, self._engine_optimizer())
        return prepared

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Leave it to `_prepare_for_training`."""

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save what any engine can go on from."""
        self._writer.finish()  # its curve may name other weights
        if self._best is not None:
            self._best.begin_checkpoint()
        self._writer.save(
            self.state.global_step,
            self._objective,
            self._engine_optimizer(),
            lambda checkpoint: self.state.save_to_json(str(checkpoint / TRAINER_STATE_NAME)),
            at_once=self.control.should_training_stop,
        )

    def _engine_optimizer(self) -> Optimizer | ZeroOptimizer:
        """The optimizer inside accelerate's wrapper: AdamW, or ZeRO's."""
        wrapper: Any = self.optimizer
        inside: Optimizer | ZeroOptimizer = wrapper.optimizer
        return inside


@contextmanager
def _compiled(student: CausalLM, wanted: bool) -> Iterator[None]:
    """Run a student's layers compiled, if that is wanted; on a CPU attention is masked then, which has one shape."""
    attend_by_document(student, not wanted or attends_over_lengths(student.device))
    try:
        with compiled_modules(_layers(student) if wanted else ()):
            yield
    finally:
        attend_by_document(student)


def _recompute_activations(student: CausalLM, recomputed: bool | float) -> None:
    # transformers 5.20 knows it under the second name, which later versions deprecate.
    enable = getattr(student, "activation_checkpointing_enable", None) or student.gradient_checkpointing_enable
    enable()
    layers = _layers(student)
    for layer in layers[num_recomputed(recomputed, len(layers)) :]:
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = False


def _layers(student: CausalLM) -> list[nn.Module]:
    return decoder_layers(student, layout_of(student.config.model_type), range(student.config.num_hidden_layers))


def _memory(student: CausalLM, lesson: Lesson, arguments: TrainingArguments) -> TrainingMemoryError:
    settings = lesson.settings
    micro = arguments.per_device_train_batch_size
    value_bytes = compute_dtype(arguments.device).itemsize
    layout = layout_of(student.config.model_type)
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in student.parameters())
    memory = TrainingMemory.estimate(
        parameters,
        architecture_of(student.config.to_dict(), layout),
        layout,
        micro * lesson.schedule.sequence_length,
        value_bytes,
        settings.gradient_checkpointing,
        zero_stage(settings),
        arguments.world_size,
    )
    return memory.error(settings, micro, zero_stage(settings))


def _history(checkpoint: Path | None, last_step: int) -> list[dict[str, Any]]:
    """Return what had been logged up to a step when a checkpoint was written."""
    if checkpoint is None:
        return []
    history = json.loads((checkpoint / TRAINER_STATE_NAME).read_text())["log_history"]
    return [entry for entry in history if entry["step"] <= last_step]
