"""Settings of importance estimation; no torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from minitron_nas.evaluation.tasks import OFFLINE, PRESETS, WrittenTask
from minitron_nas.settings import Settings

Aggregation = Literal["mean", "l2", "variance"]


class DepthSettings(Settings):
    """Which layers leave when a model gets fewer of them.

    Attributes:
        criterion: What is lost with a layer: its Block Importance, or how the model does without it:
            next-token loss, KL to the whole model, relative square error of the logits, or wrong
            answers of a task.
        mode: `layers` ranks each layer by itself; `block` takes out the contiguous run of layers that
            costs least, for every number of layers anew; `greedy` takes out one layer after the other
            and measures again after each.
        task: The lm-eval multiple-choice task of criterion `task`, such as winogrande or winogrande@5.
        include_path: Folder of the user's own lm-eval task files.
        limit: Documents of the task; all without it.
        num_sequences: Calibration sequences that layers are measured on. Block Importance in mode
            `layers` comes with the other scores, from all of them.

    Source: Block Importance and loss: Muralidharan et al. 2024 (arXiv 2407.14679), section 2.2;
    task and blocks: Sreenivas et al. 2024 (arXiv 2408.11796).
    """

    criterion: Literal["block_importance", "loss", "kl", "logit_mse", "task"] = "block_importance"
    mode: Literal["layers", "block", "greedy"] = "layers"
    task: WrittenTask | None = None
    include_path: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    num_sequences: Annotated[int, Field(ge=1)] = 16

    @model_validator(mode="after")
    def _task_with_its_criterion(self) -> Self:
        if self.criterion == "task":
            if self.task is None:
                raise ValueError("criterion is 'task' but no task is given; name one, such as task=winogrande")
            if self.task in (OFFLINE, *PRESETS):
                raise ValueError(f"task={self.task} is a list of tasks; name one of them, such as task=winogrande")
            return self
        given = [name for name in ("task", "include_path", "limit") if getattr(self, name) is not None]
        if given:
            raise ValueError(
                f"{', '.join(given)} given, but criterion is {self.criterion!r}; set criterion=task or leave out "
                f"{', '.join(given)}"
            )
        return self

    @property
    def needs_model(self) -> bool:
        """Whether layers are measured by runs of their own, beyond the scoring pass."""
        return self.criterion != "block_importance" or self.mode != "layers"

    @property
    def needs_text(self) -> bool:
        """Whether those runs read calibration text."""
        return self.needs_model and self.criterion != "task"


class ImportanceSettings(Settings):
    """How activations become one score per channel, neuron, head and group, and which layers leave.

    Attributes:
        batch_aggregation: Over the samples of the calibration text.
        sequence_aggregation: Over the tokens of a sample.
        depth: Which layers leave.

    The papers chose L2 over samples of the mean over the sequence. Of the nine pairs, the mean over samples of
    the L2 over the sequence kept most of what SmolLM2 knows, so that it is the default (`reports/benchmarks.md`).
    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 2.2 and best practice 2.
    """

    batch_aggregation: Aggregation = "mean"
    sequence_aggregation: Aggregation = "l2"
    depth: DepthSettings = DepthSettings()
