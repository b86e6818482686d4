"""What a source is given before it is cut: the basis of its residual stream, and what its repair needs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from minitron_nas.architecture.layout import HIDDEN
from minitron_nas.architecture.spec import Architecture
from minitron_nas.importance.moments import Readers
from minitron_nas.importance.passes import CalibrationPass
from minitron_nas.importance.tensor_folder import TensorFolder
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.outline import Outline
from minitron_nas.models.placement import fits_in_memory
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.refit import cuts_inputs
from minitron_nas.pruning.repair_in_sequence import why_not_in_sequence
from minitron_nas.pruning.rotation import Rotation, stream_norms, why_not_rotatable
from minitron_nas.pruning.settings import RANDOM_TOKENS, Start, StartSettings
from minitron_nas.storage.atomic import require_free_bytes
from minitron_nas.text.tokens import PackedTokens


def measure_start(
    checkpoint: Checkpoint,
    calibration: Callable[[], PackedTokens],
    start: StartSettings,
    work: Path,
    random_tokens: float = RANDOM_TOKENS,
    progress: Progress = silent,
) -> tuple[Rotation | None, Path | None]:
    """Measure on text what cutting a source well needs, in one pass for each of the two.

    Args:
        checkpoint: The source.
        calibration: Reads the text, if anything is measured on it.
        start: Whether to find the basis in which hidden channels are cut, and whether to measure the second moments
            of what output projections read.
        work: A folder for what memory is too small for, and for the second moments.
        random_tokens: For the basis, the share of the text's tokens that are replaced with any of the vocabulary.
        progress: Told about tokens.

    Returns:
        The rotation, and the `TensorFolder` of the second moments, each None where it is not wanted.

    Raises:
        DiskSpaceError: If the disk cannot hold the second moments, or the hidden states of the text.
    """
    readers = _readers(start)
    if readers is None:
        return None, None
    moments = TensorFolder(work / "moments")
    num_bytes = moments_bytes(checkpoint, readers)
    require_free_bytes(work, num_bytes, "second moments of activations")
    whole = fits_in_memory(checkpoint, num_bytes)
    along = CalibrationPass(checkpoint, calibration(), whole, work)
    rotation = None
    if readers != "projections":
        read = along.text.with_random_tokens(random_tokens, checkpoint.architecture.vocab_size)
        told = _half(progress, 0) if readers == "all" else progress
        replace(along, text=read).moments("norms", moments, told)
        rotation = Rotation.of(moments, checkpoint.headers, checkpoint.architecture, checkpoint.layout)
        for place in stream_norms(checkpoint.layout, checkpoint.architecture):
            del moments[place.name]
    if readers == "norms":
        return rotation, None
    along.moments("projections", moments, _half(progress, 1) if readers == "all" else progress)
    return rotation, moments.path


def _readers(start: StartSettings) -> Readers | None:
    if start.channels == "rotate":
        return "all" if start.repair == "ridge" else "norms"
    return "projections" if start.repair == "ridge" else None


def _half(progress: Progress, number: int) -> Progress:
    """Tell of the first or second of two passes over the same text."""
    return lambda done, total: progress(number * total + done, 2 * total)


def moments_bytes(checkpoint: Checkpoint | Outline, readers: Readers) -> int:
    """Return the bytes of a model's second moments, float32.

    Args:
        checkpoint: The model.
        readers: Those of what.
    """
    layout, source = checkpoint.layout, checkpoint.architecture
    sizes = [source.hidden_size for _ in stream_norms(layout, source)] if readers != "projections" else []
    for place in layout.tensors(source) if readers != "norms" else ():
        if place.row in layout.writers():
            dims = place.row.shape(source)
            sizes.append(dims[1 - place.row.dims.index(HIDDEN)])
    return sum(4 * size**2 for size in sizes)


def possible_start(start: Start, checkpoint: Checkpoint) -> tuple[Start, str]:
    """Return how hidden channels can be cut, and a sentence about it that says why where it is not as asked.

    Args:
        start: How they are asked to be cut.
        checkpoint: The source.
    """
    reason = why_not_rotatable(checkpoint.layout, checkpoint.architecture)
    if start == "rotate" and reason is not None:
        return "select", f"channels are selected, not rotated: {reason}"
    return start, "channels are rotated" if start == "rotate" else "channels are selected"


@dataclass(frozen=True, slots=True)
class TakenStart:
    """How a student is cut: what was asked for, as far as its family and shape allow it.

    Attributes:
        channels: What becomes of hidden channels, in words.
        repair: What makes up for what is cut, in words.
    """

    channels: str
    repair: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, target: Architecture, asked: StartSettings) -> "TakenStart":
        """Find out for a student.

        Args:
            checkpoint: The source.
            target: Its shape.
            asked: What was asked for.
        """
        source, layout = checkpoint.architecture, checkpoint.layout
        channels = "all channels stay"
        if target.hidden_size < source.hidden_size:
            channels = possible_start(asked.channels, checkpoint)[1]
        reason = why_not_in_sequence(layout, source, target)
        if asked.repair == "none" or target == source:
            return cls(channels, "nothing is repaired")
        if reason is None:
            experts = ", experts in one pass" if layout.has_experts and cuts_inputs(layout, source, target) else ""
            return cls(channels, f"repaired layer after layer{experts}")
        if cuts_inputs(layout, source, target):
            return cls(channels, f"repaired in one pass, not layer after layer: {reason}")
        return cls(channels, f"not repaired, because no neurons or heads leave and {reason}")

    def __str__(self) -> str:
        """Both in one sentence."""
        return f"{self.channels}; {self.repair}"
