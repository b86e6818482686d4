"""Settings of an alignment; no torch."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, ValidationError

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.settings import Settings, plan_error

Method: TypeAlias = Literal["sft", "dpo", "kd"]


class AlignmentSettings(Settings):
    """How a student is aligned.

    Attributes:
        method: `sft`: next-token loss on what assistants write. `kd`: KL to an instruct teacher there. `dpo`: what is
            chosen over what is rejected, held against the student as it began.
        epochs: How often the conversations are read.
        learning_rate: Peak of the cosine schedule. Without it 2e-5, for `dpo` 1e-6.
        batch_sequences: Packed sequences, for `dpo` pairs, of one optimizer step; without it, as many as give about 100
            steps, at most 64.
        micro_batch_sequences: Sequences, for `dpo` pairs, of one forward pass.
        beta: Of `dpo`: how much it costs to leave the student as it began. Rafailov et al. 2023 (arXiv 2305.18290)
            took 0.1.
        num_evaluations: Points on the validation curve after the first; the best of them is what is written.
        checkpoint_minutes: Time between checkpoints, from which a killed alignment goes on. (`dpo` writes one at each
            evaluation.)
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        deepspeed: A DeepSpeed JSON, not for `dpo`: its path, or the name of one in `runners/`.
    """

    method: Method = "sft"
    epochs: Annotated[float, Field(gt=0)] = 2.0
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    batch_sequences: Annotated[int, Field(ge=1)] | None = None
    micro_batch_sequences: Annotated[int, Field(ge=1)] = 1
    beta: Annotated[float, Field(gt=0)] = 0.1
    num_evaluations: Annotated[int, Field(ge=1)] = 4
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 15.0
    gradient_checkpointing: bool = False
    deepspeed: str | None = None

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after warm-up."""
        return self.learning_rate or (1e-6 if self.method == "dpo" else 2e-5)

    def training(self) -> DistillationSettings:
        """Return what the training loop of distillation is told, for `sft` and `kd`."""
        return AlignmentTraining(
            learning_rate=self.peak_learning_rate,
            batch_sequences=self.batch_sequences,
            micro_batch_sequences=self.micro_batch_sequences,
            loss="forward_kl" if self.method == "kd" else "lm",
            num_evaluations=self.num_evaluations,
            checkpoint_minutes=self.checkpoint_minutes,
            gradient_checkpointing=self.gradient_checkpointing,
            deepspeed=self.deepspeed,
        )


class AlignmentTraining(DistillationSettings):
    """What the training loop is told where it aligns a student."""

    section: ClassVar[str] = "align"


def read_alignment(values: Mapping[str, Any]) -> AlignmentSettings:
    """Check the settings of an alignment.

    Args:
        values: By name.

    Raises:
        PlanError: If one is unknown, or cannot be what was given.
    """
    try:
        return AlignmentSettings.model_validate(values)
    except ValidationError as error:
        raise plan_error(error, AlignmentSettings, "align") from None
