"""Passes of calibration text through a checkpoint: as a whole, or layer by layer where memory is too small."""

from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from minitron_nas.errors import PlanError
from minitron_nas.execution.device import release_memory
from minitron_nas.importance.moments import Readers, second_moments, sweep_moments
from minitron_nas.importance.score import score_importance, sweep_importance
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import DepthSettings, ImportanceSettings
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.loading import load_whole
from minitron_nas.models.outline import Outline
from minitron_nas.models.placement import fits_in_memory, whole_model_bytes
from minitron_nas.progress import Progress
from minitron_nas.settings import about_bytes
from minitron_nas.text.tokens import PackedTokens


def pass_title(title: str, whole: bool) -> str:
    """Say which way text goes through a model.

    Args:
        title: What is measured.
        whole: Whether the whole model is in memory.
    """
    return title if whole else f"{title}, layer by layer, because the model does not fit into memory"


@dataclass(frozen=True, slots=True)
class CalibrationPass:
    """Text on its way through a model: at once, or layer by layer; both ways measure the same.

    Attributes:
        checkpoint: The model.
        text: The text.
        whole: Whether to load the whole model, which has to fit, or one layer after the other.
        folder: Where hidden states go that memory is too small for; holds nothing afterwards.
    """

    checkpoint: Checkpoint
    text: PackedTokens
    whole: bool
    folder: Path

    def score(self, settings: ImportanceSettings, progress: Progress) -> ImportanceScores:
        """Score every part of the model, as `score_importance` says.

        Args:
            settings: The two aggregations.
            progress: Told what is done.

        Raises:
            DiskSpaceError: If neither memory nor disk can hold the hidden states of the text.
        """
        checkpoint = self.checkpoint
        if not self.whole:
            return sweep_importance(checkpoint, self.text, settings, self.folder, progress=progress)
        model = load_whole(checkpoint.path)
        scores = score_importance(
            model, checkpoint.architecture, checkpoint.layout, self.text, settings, progress=progress
        )
        del model
        release_memory()
        return scores

    def moments(self, readers: Readers, kept: MutableMapping[str, Tensor], progress: Progress) -> None:
        """Measure second moments, as `second_moments` says.

        Args:
            readers: Of what to measure them.
            kept: Gets the matrices.
            progress: Told what is done.

        Raises:
            DiskSpaceError: If neither memory nor disk can hold the hidden states of the text.
        """
        if not self.whole:
            sweep_moments(self.checkpoint, self.text, self.folder, kept, readers, progress=progress)
            return
        model = load_whole(self.checkpoint.path)
        second_moments(model, self.checkpoint.layout, self.text, kept, readers, progress=progress)
        del model
        release_memory()


def require_whole_model(checkpoint: Checkpoint | Outline, depth: DepthSettings) -> None:
    """Refuse to measure layers on a model that does not fit into memory.

    Args:
        checkpoint: The model.
        depth: Criterion and mode, for the message.

    Raises:
        PlanError: With the memory that is needed and what to choose instead.
    """
    if not fits_in_memory(checkpoint):
        raise PlanError(
            f"importance.depth criterion={depth.criterion} with mode={depth.mode} runs the whole model, which needs "
            f"{about_bytes(whole_model_bytes(checkpoint))} of free memory for "
            f"{checkpoint.path}; choose criterion=block_importance with mode=layers, which needs one layer "
            "at a time, or use a machine with more memory"
        )
