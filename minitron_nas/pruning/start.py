"""What a source is given before it is cut: the basis of its residual stream, and what its repair needs."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from minitron_nas.architecture.spec import Architecture
from minitron_nas.importance.moments import Moment, Readers, moments_of
from minitron_nas.importance.passes import CalibrationPass
from minitron_nas.importance.tensor_folder import TensorFolder
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.outline import Outline
from minitron_nas.models.placement import fits_in_memory
from minitron_nas.progress import Progress, one_of, silent
from minitron_nas.pruning.refit import cuts_inputs
from minitron_nas.pruning.repair_in_sequence import why_not_in_sequence
from minitron_nas.pruning.rotation import Rotation, why_not_rotatable
from minitron_nas.pruning.settings import RANDOM_TOKENS, Start, StartSettings
from minitron_nas.storage.atomic import require_free_bytes
from minitron_nas.text.tokens import PackedTokens


def measure_start(
    checkpoint: Checkpoint,
    calibration: Callable[[], PackedTokens],
    start: StartSettings,
    work: Path,
    progress: Progress = silent,
) -> tuple[Rotation | None, Path | None]:
    """Measure on text what cutting a source well needs, in one pass for each of the two.

    Args:
        checkpoint: The source.
        calibration: Reads the text, if anything is measured on it.
        start: Whether to find the basis in which hidden channels are cut, and whether to measure the second moments
            of what output projections read.
        work: A folder for what memory is too small for, and for the second moments.
        progress: Told about tokens.

    Returns:
        The rotation, and the `TensorFolder` of the second moments, each None where it is not wanted.

    Raises:
        DiskSpaceError: If the disk cannot hold the second moments, or the hidden states of the text.
    """
    folder = work / "moments"
    keep_moments(checkpoint, calibration, start, folder, work, progress=progress)
    return found_start(checkpoint, start, folder)


def keep_moments(
    checkpoint: Checkpoint,
    calibration: Callable[[], PackedTokens],
    start: StartSettings,
    folder: Path,
    work: Path,
    layers: Collection[int] | None = None,
    progress: Progress = silent,
) -> None:
    """Measure the second moments that a start needs, as far as they are missing; `found_start` reads them.

    Several processes that measure different layers give what one gives that measures all of them: text goes through
    the whole model in each.

    Args:
        checkpoint: The source.
        calibration: Reads the text, if anything is measured on it.
        start: As above.
        folder: Gets a `TensorFolder` for each pass.
        work: A folder for what memory is too small for.
        layers: In which layers to measure; in all by default.
        progress: Told about tokens.

    Raises:
        DiskSpaceError: If the disk cannot hold them, or the hidden states of the text.
    """
    missing = {
        readers: [
            moment
            for moment in moments_of(checkpoint.layout, checkpoint.architecture, readers)
            if (layers is None or moment.layer in layers) and moment.name not in TensorFolder(folder / readers)
        ]
        for readers in _passes(start)
    }
    left = [readers for readers, moments in missing.items() if moments]
    require_free_bytes(folder, sum(_num_bytes(missing[readers]) for readers in left), "second moments of activations")
    for number, readers in enumerate(left):
        text = calibration()
        if readers == "norms":
            text = text.with_random_tokens(RANDOM_TOKENS, checkpoint.architecture.vocab_size)
        whole = fits_in_memory(checkpoint, _num_bytes(missing[readers]))
        told = one_of(progress, number, len(left))
        CalibrationPass(checkpoint, text, whole, work).moments(
            readers, TensorFolder(folder / readers), told, {moment.layer for moment in missing[readers]}
        )


def found_start(checkpoint: Checkpoint, start: StartSettings, folder: Path) -> tuple[Rotation | None, Path | None]:
    """Return what `measure_start` does, once the second moments are there.

    Args:
        checkpoint: The source.
        start: As above.
        folder: What `keep_moments` filled.
    """
    rotation, passes = None, _passes(start)
    if "norms" in passes:
        norms = TensorFolder(folder / "norms")
        rotation = Rotation.of(norms, checkpoint.headers, checkpoint.architecture, checkpoint.layout)
    return rotation, folder / "projections" if "projections" in passes else None


def _passes(start: StartSettings) -> list[Readers]:
    """Return of what reads a start needs second moments, a pass for each: the basis is found on another text."""
    wanted: dict[Readers, bool] = {"norms": start.channels == "rotate", "projections": start.repair == "ridge"}
    return [readers for readers, is_wanted in wanted.items() if is_wanted]


def _num_bytes(moments: Iterable[Moment]) -> int:
    return sum(moment.num_bytes for moment in moments)


def moments_bytes(checkpoint: Checkpoint | Outline, readers: Readers) -> int:
    """Return the bytes of a model's second moments, float32.

    Args:
        checkpoint: The model.
        readers: Those of what.
    """
    return _num_bytes(moments_of(checkpoint.layout, checkpoint.architecture, readers))


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
            experts = ", experts in one pass" if source.num_experts and cuts_inputs(layout, source, target) else ""
            return cls(channels, f"repaired layer after layer{experts}")
        if cuts_inputs(layout, source, target):
            return cls(channels, f"repaired in one pass, not layer after layer: {reason}")
        return cls(channels, f"not repaired, because no neurons or heads leave and {reason}")

    def __str__(self) -> str:
        """Both in one sentence."""
        return f"{self.channels}; {self.repair}"
