"""What a source is given before it is cut: the basis of its residual stream, and what its repair needs."""

from collections.abc import Callable

from torch import Tensor

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.signals import load_for_inference
from minitron_nas.distillation.tokens import PackedTokens
from minitron_nas.execution.device import release_memory
from minitron_nas.families.checkpoint import Checkpoint
from minitron_nas.importance.moments import second_moments
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.rotation import Rotation, why_not_rotatable
from minitron_nas.pruning.settings import Start


def measure_start(
    checkpoint: Checkpoint,
    calibration: Callable[[], PackedTokens],
    rotate: bool,
    repair: bool,
    progress: Progress = silent,
) -> tuple[Rotation | None, dict[str, Tensor] | None]:
    """Measure on text what cutting a source well needs, in one pass.

    Args:
        checkpoint: The source.
        calibration: Reads the text.
        rotate: Whether to find the basis in which hidden channels are cut.
        repair: Whether to measure the second moments of what output projections read.
        progress: Told about tokens.

    Returns:
        The rotation and the second moments, each None where it is not wanted.
    """
    if not rotate and not repair:
        return None, None
    layout = checkpoint.layout
    model = load_for_inference(checkpoint.path)
    moments = second_moments(model, layout, calibration(), stream=rotate, inputs=repair, progress=progress)
    del model
    release_memory()
    rotation = Rotation.of(moments, checkpoint.headers, checkpoint.architecture, layout) if rotate else None
    written = {p.name for p in layout.tensors(checkpoint.architecture) if layout.writes_hidden(p.row)}
    return rotation, {name: moment for name, moment in moments.items() if name in written} if repair else None


def cuts_inputs(source: Architecture, target: Architecture) -> bool:
    """Whether a shape takes inputs away from output projections: neurons or heads."""
    sizes = ("intermediate_size", "moe_intermediate_size", "num_attention_heads")
    return any(getattr(source, size) != getattr(target, size) for size in sizes)


def possible_start(start: Start, checkpoint: Checkpoint) -> tuple[Start, str]:
    """Return how hidden channels can be cut, and a sentence about it that says why where it is not as asked."""
    reason = why_not_rotatable(checkpoint.layout, checkpoint.architecture)
    if start == "rotate" and reason is not None:
        return "select", f"channels are selected, not rotated: {reason}"
    return start, "channels are rotated" if start == "rotate" else "channels are selected"
