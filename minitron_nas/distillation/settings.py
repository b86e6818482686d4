"""Settings of distillation; no torch."""

import warnings
from math import inf, nan
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from minitron_nas.settings import Count, Settings

LogitLoss: TypeAlias = Literal["forward_kl", "reverse_kl", "jsd", "mse", "cosine", "lm"]
SignalKind: TypeAlias = Literal["auto", "hidden_cache", "top_k", "online"]

HOW_TO_TRAIN = (
    *("checkpoint_minutes", "deepspeed", "gradient_checkpointing", "micro_batch_sequences"),
    *("report_to", "run_name", "torch_compile"),
)
"""Settings of a distillation that say how it is done: what comes out is the same but for rounding."""

DEFAULT_LEARNING_RATE = 1e-4
"""Peak where none is given and none is found; P2 (arXiv 2408.11796, table 4) trained its 4B models with it."""

PROBES_FIT = 40
"""Short trainings at one learning rate that would take all tokens of a student: four may take a tenth."""

_FEW_TOP_K = 64
_CACHED_TOP_K = 256


def _rate(value: object) -> float | Literal["auto"]:
    """Read a learning rate, or the word that has one looked for."""
    if value == "auto":
        return "auto"
    try:
        rate = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else nan
    except ValueError:
        rate = nan
    if not 0 < rate < inf:
        raise ValueError(f"{value!r} is no learning rate; write a number above 0 such as 1e-4, or auto")
    return rate


def _whether(value: object, read: ValidatorFunctionWrapHandler) -> bool | Literal["auto"]:
    """Read yes or no, or the word that leaves it to what trains."""
    try:
        told: bool | Literal["auto"] = read(value)
    except ValidationError:
        raise ValueError(f"{value!r} is neither yes nor no; write true, false or auto") from None
    return told


def _share(value: object, read: ValidatorFunctionWrapHandler) -> bool | float:
    """Read yes or no, or how much of it."""
    try:
        told: bool | float = read(value)
    except ValidationError:
        raise ValueError(
            f"{value!r} is neither yes nor no, nor a share of the layers; write true, false or a number between 0 and 1"
        ) from None
    return told


Recomputed: TypeAlias = Annotated[bool | Annotated[float, Field(gt=0, lt=1)], WrapValidator(_share)]
"""All layers, none, or a share of them."""


def num_recomputed(recomputed: bool | float, num_layers: int) -> int:
    """Return how many layers compute their activations again in the backward pass.

    Args:
        recomputed: All layers, none, or a share of them, which is one layer at least.
        num_layers: Of the model.
    """
    return min(max(round(recomputed * num_layers), 1), num_layers) if recomputed else 0


class DistillationSettings(Settings):
    """How a student learns from the teacher; short and full distillation share these.

    Attributes:
        tokens: KD tokens of one student; without it, one pass over the training text, at most 1B.
        learning_rate: Peak of the cosine schedule: a number, or `auto` to look for one. Then 1e-4, a few higher rates,
            and where those do harm 1e-5, are tried on a size's first finalist, in short trainings of at most fifty
            steps that together take at most a tenth of a student's tokens. The one with the lowest validation KL is
            that of all trainings of the size; 1e-4 where tokens are too few for that.
        min_learning_rate_fraction: End of the schedule, as a fraction of the peak.
        warmup_fraction: Share of the steps with linearly rising learning rate.
        weight_decay: Of AdamW.
        adam_beta2: Decay of AdamW's second moments.
        batch_sequences: Sequences of one optimizer step; without it, as many as give about 200
            steps, at most 1152 (the papers' batch).
        micro_batch_sequences: Sequences of one forward pass.
        loss: How the student's distribution is compared with the teacher's: `forward_kl`, `reverse_kl`, `jsd`
            (generalised Jensen-Shannon), `mse`, `cosine`; the papers found `forward_kl` best. `lm` is the
            next-token loss alone, the papers' conventional retraining, which asks no teacher.
        temperature: Divides the logits of both before they are compared; the papers found 1 best. The loss
            is not multiplied by its square.
        jsd_beta: Weight of the teacher in the mixture of `jsd`.
        top_k: Only the teacher's so many most probable tokens are told apart, and all others are one; without it,
            all are told apart.
        lm_loss_weight: Weight of the next-token loss beside the other; the papers found 0 best.
        intermediate: Whether hidden states inside the models are matched too, and the embeddings: `none`,
            `always`, or `auto`, for a student with at most half of the teacher's layers. Needs the `online`
            teacher. The papers found it worth while only where depth falls a lot.
        intermediate_layers: Pairs (teacher's layer, student's layer) whose outputs are matched; negative
            numbers count from the end.
        intermediate_loss: `cosine` or `mse`.
        max_grad_norm: Gradients are clipped to this L2 norm.
        teacher_signal: `auto` settles on one of the others before work starts, so that what is kept of the teacher
            takes at most half of the free disk. `hidden_cache` runs the teacher once and stores its final hidden
            states, which say all that it says; `top_k` stores the log-probabilities of its `top_k` most probable
            tokens, 256 unless given, which is less to store than hidden states of more than 3 x `top_k` values;
            `online` runs it beside the student. Validation always has the whole distribution.
        num_evaluations: Points on the validation curve after the untrained one.
        checkpoint_minutes: Time between checkpoints, from which a killed run goes on.
        gradient_checkpointing: Compute activations again in the backward pass to save memory: those of all layers, or
            of a share of them, the first, such as 0.5, which takes less of the time and saves less.
        torch_compile: Compile the student's layers for full distillation; `auto` does on a GPU, where seconds at the
            start make training much faster. (The loss is always compiled, where a compiler is.)
        deepspeed: A DeepSpeed JSON for full distillation: its path, or the name of one in `runners/`.
        report_to: Where full distillation reports its curve: `tensorboard`, `wandb`, `mlflow` or what else
            transformers knows.
        run_name: What the run is called there.
    """

    section: ClassVar[str] = "distillation"
    """Of the plan, for messages."""

    tokens: Count | None = None
    learning_rate: Annotated[float | Literal["auto"], BeforeValidator(_rate)] = "auto"
    min_learning_rate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95
    batch_sequences: Annotated[int, Field(ge=1)] | None = None
    micro_batch_sequences: Annotated[int, Field(ge=1)] = 1
    loss: LogitLoss = "forward_kl"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    jsd_beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    top_k: Annotated[int, Field(ge=1)] | None = None
    lm_loss_weight: Annotated[float, Field(ge=0)] = 0.0
    intermediate: Literal["none", "auto", "always"] = "none"
    intermediate_layers: Annotated[tuple[tuple[int, int], ...], Field(min_length=1)] = ((-3, -3),)
    intermediate_loss: Literal["cosine", "mse"] = "cosine"
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    teacher_signal: SignalKind = "auto"
    num_evaluations: Annotated[int, Field(ge=1)] = 8
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 15.0
    gradient_checkpointing: Recomputed = False
    torch_compile: Annotated[bool | Literal["auto"], WrapValidator(_whether)] = "auto"
    deepspeed: str | None = None
    report_to: tuple[str, ...] = ()
    run_name: str | None = None

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after warm-up; the default where one is still to be looked for."""
        return DEFAULT_LEARNING_RATE if self.learning_rate == "auto" else self.learning_rate

    def at_rate(self, learning_rate: float) -> Self:
        """Return the same with a learning rate that is a number.

        Args:
            learning_rate: The peak of the schedule.
        """
        return self.model_copy(update={"learning_rate": learning_rate})

    @property
    def asks_teacher(self) -> bool:
        """Whether training needs the teacher's signal."""
        return self.loss != "lm"

    @property
    def minimises_kl(self) -> bool:
        """Whether what is minimised is KL(teacher || student) over the whole vocabulary and nothing else."""
        plain = self.loss == "forward_kl" and self.temperature == 1 and not self.lm_loss_weight
        return plain and self.top_k is None and self.teacher_signal != "top_k" and self.intermediate == "none"

    def compiles_layers(self, device_type: str) -> bool:
        """Whether the student's layers are to be compiled.

        Args:
            device_type: What trains, such as `cuda`.
        """
        if self.torch_compile == "auto":
            return device_type == "cuda" and self.intermediate == "none"
        return self.torch_compile

    @property
    def signals(self) -> tuple[SignalKind, ...]:
        """The kinds of signal that hold what a student learns from here, the best first."""
        return self._served_by()[0]

    def _served_by(self) -> tuple[tuple[SignalKind, ...], str]:
        """Return the kinds of signal that serve, and what it is that others do not hold."""
        if self.intermediate != "none":
            return ("online",), f"intermediate={self.intermediate} learns from hidden states inside the teacher"
        if self.loss in ("mse", "cosine"):
            return ("hidden_cache", "online"), f"loss={self.loss} compares whole distributions"
        return ("hidden_cache", "top_k", "online"), ""

    @property
    def caches_training(self) -> bool:
        """Whether the teacher's signal over the training tokens is written before training, as `auto` would have it."""
        return self.asks_teacher and self.teacher_signal != "online" and self.signals != ("online",)

    @property
    def cached_top_k(self) -> int | None:
        """How many tokens of each distribution a cache keeps for training; None where it keeps hidden states."""
        return (self.top_k or _CACHED_TOP_K) if self.teacher_signal == "top_k" else None

    @model_validator(mode="after")
    def _losses_go_together(self) -> Self:
        if self.loss == "lm" and self.lm_loss_weight:
            raise ValueError(
                f"loss=lm is the next-token loss alone, and lm_loss_weight={self.lm_loss_weight:g} weighs it beside "
                "another; leave the weight out, or choose another loss"
            )
        if self.top_k is not None and self.loss in ("mse", "cosine", "lm"):
            raise ValueError(
                f"top_k={self.top_k} is of a divergence, and loss={self.loss} is none; leave top_k out, or "
                "choose forward_kl, reverse_kl or jsd"
            )
        if self.intermediate != "none" and self.loss == "lm":
            raise ValueError(
                f"intermediate={self.intermediate} is weighed against a loss on the teacher's logits, and loss=lm has "
                "none; set intermediate=none, or choose another loss"
            )
        if self.intermediate != "none" and self.torch_compile is True:
            raise ValueError(
                f"intermediate={self.intermediate} watches hidden states inside the student's layers, which "
                "torch_compile=true compiles without what watches them; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _signal_holds_what_is_learned(self) -> Self:
        kinds, needed = self._served_by()
        if self.teacher_signal not in ("auto", *kinds):
            raise ValueError(
                f"{needed}, which teacher_signal={self.teacher_signal} does not hold; "
                f"set teacher_signal to auto or {' or '.join(kinds)}"
            )
        return self

    @model_validator(mode="after")
    def _warn_of_few_tokens(self) -> Self:
        if self.top_k is not None and self.top_k < _FEW_TOP_K:
            warnings.warn(
                f"top_k={self.top_k}: {_FEW_TOP_K} tokens cost a student half a percent of its KL, fewer cost more, "
                f"and {_CACHED_TOP_K} nothing (reports/benchmarks.md)",
                stacklevel=2,
            )
        return self


class CorrectionTraining(DistillationSettings):
    """What the training loop is told where it fine-tunes the teacher."""

    section: ClassVar[str] = "correct"


class CorrectionSettings(Settings):
    """How the unpruned teacher is fine-tuned on the KD text before students learn from it.

    Attributes:
        tokens: Tokens to train on; without it, one pass over the training text, at most 1B.
        learning_rate: Peak of the cosine schedule. Without it, 6e-5 for all weights, a fifth of the peak
            of 3e-4 that Llama 3 8B was trained with: most checkpoints do not say their own. For LoRA, which
            learns best at about ten times the rate, 6e-4.
        warmup_steps: Steps with linearly rising learning rate, at most half of all steps.
        batch_sequences: Sequences of one optimizer step; without it, as many as give about 200
            steps, at most 1152.
        micro_batch_sequences: Sequences of one forward pass.
        gradient_checkpointing: Compute activations of all layers, or of a share of them, again in the backward pass to
            save memory.
        weights: `full` trains every weight; `lora` trains low-rank additions to the linear layers, which
            are merged into the weights at the end, and needs peft: `pip install '.[lora]'` in the checkout.
        lora_rank: Rank of the additions.

    Source: Sreenivas et al. 2024 (arXiv 2408.11796): a fifth of the peak learning rate, 120 warm-up
    steps, next-token loss only.
    """

    tokens: Count | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 120
    batch_sequences: Annotated[int, Field(ge=1)] | None = None
    micro_batch_sequences: Annotated[int, Field(ge=1)] = 1
    gradient_checkpointing: Recomputed = False
    weights: Literal["full", "lora"] = "full"
    lora_rank: Annotated[int, Field(ge=1)] = 16

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after warm-up."""
        return self.learning_rate or {"full": 6e-5, "lora": 6e-4}[self.weights]
