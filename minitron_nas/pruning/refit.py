"""How one student is repaired: in sequence where that suits it, in one pass where not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from minitron_nas.architecture.layout import Layout, axis_sizes
from minitron_nas.architecture.spec import Architecture
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.repair_in_sequence import repair_in_sequence, why_not_in_sequence
from minitron_nas.storage.weights import TensorHeader
from minitron_nas.text.tokens import PackedTokens


def repair_student(
    prepared: PreparedTeacher,
    target: Architecture,
    calibration: Callable[[], PackedTokens],
    folder: Path,
    progress: Progress = silent,
) -> dict[str, TensorHeader]:
    """Repair one student in sequence, where that is how it is repaired if nobody measures which way suits it.

    Args:
        prepared: Its source.
        target: Its shape.
        calibration: Reads the text.
        folder: Gets the refitted tensors.
        progress: Told about tokens.

    Returns:
        Where the refitted tensors lie, by name; none where it is repaired in one pass or not at all.

    Raises:
        DiskSpaceError: If neither memory nor disk can hold the hidden states of the text.
    """
    if why_not_in_sequence(prepared.layout, prepared.architecture, target) is not None:
        return {}
    return refit_in_sequence(prepared, target, calibration(), folder, progress)


def refit_in_sequence(
    prepared: PreparedTeacher,
    target: Architecture,
    calibration: PackedTokens,
    folder: Path,
    progress: Progress = silent,
) -> dict[str, TensorHeader]:
    """Repair one student in sequence, and its experts in one pass.

    Args:
        prepared: Its source.
        target: Its shape.
        calibration: The text.
        folder: Gets the refitted tensors.
        progress: Told about tokens.

    Returns:
        Where the refitted tensors lie, by name.

    Raises:
        DiskSpaceError: If neither memory nor disk can hold the hidden states of the text.
    """
    start = prepared if prepared.architecture.num_experts else replace(prepared, moments=None)
    return repair_in_sequence(start, target, calibration, folder, progress=progress)


def needs_moments(checkpoint: Checkpoint, target: Architecture) -> bool:
    """Whether a repaired student gets anything from the repair in one pass.

    The repair in sequence refits all output projections but those of experts.

    Args:
        checkpoint: The source.
        target: The student's shape.
    """
    layout, source = checkpoint.layout, checkpoint.architecture
    left = source.num_experts > 0 or why_not_in_sequence(layout, source, target) is not None
    return left and cuts_inputs(layout, source, target)


def cuts_inputs(layout: Layout, source: Architecture, target: Architecture) -> bool:
    """Whether output projections lose inputs: neurons, heads or channels of a convolution.

    Args:
        layout: The table of the family.
        source: The source's shape.
        target: The student's.
    """
    sizes, wanted = axis_sizes(source), axis_sizes(target)
    read = {axis for row in layout.writers() for axis in layout.input_dim(row).axes}
    return any(sizes[axis] != wanted[axis] for axis in read)
