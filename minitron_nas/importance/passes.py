"""Passes of calibration text through a checkpoint: as a whole, or layer by layer where memory is too small."""

from collections.abc import MutableMapping
from pathlib import Path

import torch
from torch import Tensor

from minitron_nas.errors import PlanError
from minitron_nas.execution.device import available_bytes, compute_dtype, pick_device, release_memory
from minitron_nas.importance.moments import second_moments, sweep_moments
from minitron_nas.importance.score import score_importance, sweep_importance
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import DepthSettings, ImportanceSettings
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.loading import load_for_inference
from minitron_nas.progress import Progress
from minitron_nas.text.tokens import PackedTokens

_MARGIN_FRACTION = 0.2
"""Of the weights, for what loading and a forward pass need beside them."""
_MARGIN_BYTES = 1 << 30


def whole_model_bytes(checkpoint: Checkpoint) -> int:
    """Return the memory that running a whole model takes, in the type that this process computes in."""
    weights = checkpoint.num_parameters * compute_dtype(pick_device()).itemsize
    return int(weights * (1 + _MARGIN_FRACTION)) + _MARGIN_BYTES


def fits_in_memory(checkpoint: Checkpoint, more_bytes: int = 0) -> bool:
    """Whether a whole model can be loaded now, in main memory and on this process' device.

    Args:
        checkpoint: The model.
        more_bytes: What is kept beside it.
    """
    places = {torch.device("cpu"), pick_device()}
    return whole_model_bytes(checkpoint) + more_bytes <= min(available_bytes(place) for place in places)


def pass_title(title: str, whole: bool) -> str:
    """Say which way text goes through a model."""
    return title if whole else f"{title}, layer by layer, because the model does not fit into memory"


def score_checkpoint(
    checkpoint: Checkpoint,
    calibration: PackedTokens,
    settings: ImportanceSettings,
    whole: bool,
    folder: Path,
    progress: Progress,
) -> ImportanceScores:
    """Score every part of a model; both ways give the same scores.

    Args:
        checkpoint: The model.
        calibration: The text.
        settings: The two aggregations.
        whole: Whether to load the whole model, which has to fit, or one layer after the other.
        folder: Where hidden states go that memory is too small for; holds nothing afterwards.
        progress: Told what is done.

    Raises:
        DiskSpaceError: If neither memory nor disk can hold the hidden states of the text.
    """
    if not whole:
        return sweep_importance(checkpoint, calibration, settings, folder, progress=progress)
    model = load_for_inference(checkpoint.path)
    scores = score_importance(
        model, checkpoint.architecture, checkpoint.layout, calibration, settings, progress=progress
    )
    del model
    release_memory()
    return scores


def checkpoint_moments(
    checkpoint: Checkpoint,
    calibration: PackedTokens,
    kept: MutableMapping[str, Tensor],
    stream: bool,
    inputs: bool,
    whole: bool,
    folder: Path,
    progress: Progress,
) -> None:
    """Measure second moments of a model, as `second_moments` says; both ways give the same.

    Args:
        checkpoint: The model.
        calibration: The text.
        kept: Gets the matrices.
        stream: Whether to measure what norms read.
        inputs: Whether to measure what output projections read.
        whole: Whether to load the whole model, which has to fit, or one layer after the other.
        folder: Where hidden states go that memory is too small for; holds nothing afterwards.
        progress: Told what is done.

    Raises:
        DiskSpaceError: If neither memory nor disk can hold the hidden states of the text.
    """
    if not whole:
        sweep_moments(checkpoint, calibration, folder, kept, stream, inputs, progress=progress)
        return
    model = load_for_inference(checkpoint.path)
    second_moments(model, checkpoint.layout, calibration, kept, stream, inputs, progress=progress)
    del model
    release_memory()


def require_whole_model(checkpoint: Checkpoint, depth: DepthSettings) -> None:
    """Refuse to measure layers on a model that does not fit into memory.

    Raises:
        PlanError: With the memory that is needed and what to choose instead.
    """
    if not fits_in_memory(checkpoint):
        raise PlanError(
            f"importance.depth criterion={depth.criterion} with mode={depth.mode} runs the whole model, which needs "
            f"{whole_model_bytes(checkpoint) / 1e9:.1f} GB of free memory for "
            f"{checkpoint.path}; choose criterion=block_importance with mode=layers, which needs one layer "
            "at a time, or use a machine with more memory"
        )
