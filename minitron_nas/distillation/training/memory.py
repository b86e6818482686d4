"""What a training takes of memory, estimated, and what to change where there is not enough."""

from dataclasses import dataclass
from typing import Self

from minitron_nas.architecture.layout import Axis, Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.settings import CorrectionTraining, DistillationSettings, num_recomputed
from minitron_nas.errors import TrainingMemoryError
from minitron_nas.settings import about_bytes

_FLOAT32_BYTES = 4
_MOMENTS = 2
_LAST_STAGE_WITH_WHOLE_WEIGHTS = 2


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes of one process, without what the teacher and the vocabulary's logits take.

    Attributes:
        weights_bytes: Float32 weights.
        gradients_bytes: Float32 gradients.
        optimizer_bytes: Adam's two moments, and the weights' own copy of a shard under ZeRO.
        activations_bytes: What the backward pass of one micro-batch needs.
    """

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int

    @classmethod
    def estimate(
        cls,
        num_parameters: int,
        architecture: Architecture,
        layout: Layout,
        micro_batch_tokens: int,
        value_bytes: int,
        gradient_checkpointing: bool | float = False,
        zero_stage: int = 0,
        num_processes: int = 1,
    ) -> Self:
        """Estimate from shapes.

        A layer keeps for each token about six vectors of hidden_size (inputs and outputs of the norms and
        of both blocks), queries, keys, values and the heads' outputs, and four vectors of intermediate_size.
        A layer that computes it again keeps its input alone, and one at a time all of this; the first layers do, whose
        turn comes when the others have given theirs back.

        Args:
            num_parameters: Of the student.
            architecture: Its shape.
            layout: The table of its family.
            micro_batch_tokens: Tokens of one forward pass.
            value_bytes: Of an activation.
            gradient_checkpointing: Whether layers compute it again, or how large a share of them.
            zero_stage: Of DeepSpeed; 1 shards the optimizer, 2 gradients too, 3 weights too.
            num_processes: Over which ZeRO shards.

        Source: Rajbhandari et al. 2020 (arXiv 1910.02054), section 3.1, for all but activations.
        """
        hidden, num_layers = architecture.hidden_size, architecture.num_hidden_layers
        heads = 2 * (architecture.num_attention_heads + architecture.num_key_value_heads) * architecture.head_dim
        layer = (6 * hidden + heads + 4 * _mean_neurons(architecture, layout)) * value_bytes
        again = num_recomputed(gradient_checkpointing, num_layers)
        per_token = again * hidden * value_bytes + layer * max(num_layers - again, 1)
        return cls(*state_bytes(num_parameters, zero_stage, num_processes), micro_batch_tokens * per_token)

    def error(self, settings: DistillationSettings, micro_batch_sequences: int, zero_stage: int) -> TrainingMemoryError:
        """Say what takes the memory and what to change.

        Args:
            settings: What was asked for.
            micro_batch_sequences: Sequences of one forward pass.
            zero_stage: Of DeepSpeed.
        """
        section = settings.section
        changes = [f"lower {section}.micro_batch_sequences (now {micro_batch_sequences})"]
        changes *= micro_batch_sequences > 1
        changes += [f"set {section}.gradient_checkpointing=true"] * (settings.gradient_checkpointing is not True)
        if isinstance(settings, CorrectionTraining):
            changes.append("train few weights with correct.weights=lora")
        elif zero_stage <= _LAST_STAGE_WITH_WHOLE_WEIGHTS:
            changes.append("shard over more processes with distillation.deepspeed=zero-3 and runner.num_processes")
        changes += ["lower text.sequence_length"]
        return TrainingMemoryError(
            f"training ran out of memory; a process needs about {about_bytes(self.weights_bytes)} for weights, "
            f"{about_bytes(self.gradients_bytes)} for gradients, {about_bytes(self.optimizer_bytes)} for the optimizer "
            f"and {about_bytes(self.activations_bytes)} for activations, beside the teacher; {', or '.join(changes)}"
        )


def _mean_neurons(architecture: Architecture, layout: Layout) -> int:
    """Neurons of an FFN, of which some layers may have others: of all layers together over their number."""
    wide = sum(layout.has_axis(Axis.WIDE_NEURONS, kind) for kind in architecture.kinds)
    more = wide * (architecture.num_wide_neurons - architecture.intermediate_size)
    return architecture.intermediate_size + more // architecture.num_hidden_layers


def state_bytes(num_parameters: int, zero_stage: int, num_processes: int) -> tuple[int, int, int]:
    """Return the bytes of weights, gradients and optimizer in one process, as `TrainingMemory` names them.

    Args:
        num_parameters: Of the student.
        zero_stage: Of DeepSpeed.
        num_processes: Over which ZeRO shards.
    """
    whole = num_parameters * _FLOAT32_BYTES
    shard = whole // num_processes
    return (
        whole if zero_stage <= _LAST_STAGE_WITH_WHOLE_WEIGHTS else shard,
        whole if zero_stage < _LAST_STAGE_WITH_WHOLE_WEIGHTS else shard,
        (_MOMENTS + 1) * shard if zero_stage else _MOMENTS * whole,
    )
