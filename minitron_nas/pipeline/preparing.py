"""What a source is given before it is cut: the basis of its residual stream."""

from minitron_nas.distillation.signals import load_for_inference
from minitron_nas.distillation.tokens import PackedTokens
from minitron_nas.execution.device import release_memory
from minitron_nas.families.checkpoint import Checkpoint
from minitron_nas.importance.moments import stream_moments
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.rotation import Rotation, why_not_rotatable
from minitron_nas.pruning.settings import Start


def find_rotation(checkpoint: Checkpoint, calibration: PackedTokens, progress: Progress = silent) -> Rotation:
    """Measure a source's residual stream on text and find the basis in which its channels are cut.

    Args:
        checkpoint: The source.
        calibration: The text.
        progress: Told about tokens.
    """
    model = load_for_inference(checkpoint.path)
    moments = stream_moments(model, checkpoint.layout, calibration, progress=progress)
    del model
    release_memory()
    return Rotation.of(moments, checkpoint.headers, checkpoint.architecture, checkpoint.layout)


def start_note(start: Start, checkpoint: Checkpoint) -> str:
    """Say how hidden channels are cut, and why not in the way that was asked for where the family forbids it."""
    reason = why_not_rotatable(checkpoint.layout, checkpoint.architecture)
    if start == "select" or reason is None:
        return "channels are rotated" if start == "rotate" else "channels are selected"
    return f"channels are selected, not rotated: {reason}"
