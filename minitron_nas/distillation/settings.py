"""Settings of text and distillation; no torch."""

from typing import Annotated, Literal

from pydantic import Field

from minitron_nas.settings import Count, Settings


class TextSettings(Settings):
    """How text becomes tokens.

    Attributes:
        column: The column of a table that holds the text.
        config: The hub dataset's configuration, where it has several.
        split: The hub dataset's split.
        sequence_length: Tokens of one packed sequence.
        calibration_samples: Sequences for importance scores, at most a fifth of the text.
        validation_samples: Sequences for validation, at most a tenth of the text.
        max_epochs: How often training may repeat the text before it is called too short.
    """

    column: str = "text"
    config: str | None = None
    split: str = "train"
    sequence_length: Annotated[int, Field(ge=8)] = 2048
    calibration_samples: Annotated[int, Field(ge=1)] = 1024
    validation_samples: Annotated[int, Field(ge=1)] = 128
    max_epochs: Annotated[int, Field(ge=1)] = 1


class DistillationSettings(Settings):
    """How a student learns from the teacher; short and full distillation share these.

    Attributes:
        tokens: KD tokens of one student; without it, one pass over the training text, at most 1B.
        learning_rate: Peak of the cosine schedule.
        min_learning_rate_fraction: End of the schedule, as a fraction of the peak.
        warmup_fraction: Share of the steps with linearly rising learning rate.
        batch_sequences: Sequences of one optimizer step; without it, as many as give about 200
            steps, at most 1152 (the papers' batch).
        micro_batch_sequences: Sequences of one forward pass.
        lm_loss_weight: Weight of the next-token loss beside the KL; the papers found 0 best.
        max_grad_norm: Gradients are clipped to this L2 norm.
        teacher_signal: `hidden_cache` runs the teacher once and stores its final hidden states;
            `online` runs it beside the student.
        num_evaluations: Points on the validation curve after the untrained one.
        checkpoint_minutes: Time between checkpoints, from which a killed run goes on.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        deepspeed: A DeepSpeed JSON for full distillation: its path, or the name of one in `runners/`.
        report_to: Where full distillation reports its curve: `tensorboard`, `wandb`, `mlflow` or what else
            transformers knows.
        run_name: What the run is called there.
    """

    tokens: Count | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    min_learning_rate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95
    batch_sequences: Annotated[int, Field(ge=1)] | None = None
    micro_batch_sequences: Annotated[int, Field(ge=1)] = 1
    lm_loss_weight: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    teacher_signal: Literal["hidden_cache", "online"] = "hidden_cache"
    num_evaluations: Annotated[int, Field(ge=1)] = 8
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 15.0
    gradient_checkpointing: bool = False
    deepspeed: str | None = None
    report_to: tuple[str, ...] = ()
    run_name: str | None = None
