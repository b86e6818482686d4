"""Passes of calibration text through a checkpoint: as a whole, or layer by layer where memory is too small."""

from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from minitron_nas.distillation.signals.folder import WHOLE, Share
from minitron_nas.errors import PlanError
from minitron_nas.execution.device import release_memory
from minitron_nas.importance.moments import Readers, second_moments, sweep_moments
from minitron_nas.importance.score import score_sums, sweep_sums
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import DepthSettings, ImportanceSettings
from minitron_nas.importance.sums import SumsFolder, scores_of, sums_bytes
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.loading import load_whole
from minitron_nas.models.outline import Outline
from minitron_nas.models.placement import fits_in_memory, whole_model_bytes
from minitron_nas.progress import Progress, part_of
from minitron_nas.settings import about_bytes
from minitron_nas.storage.atomic import require_free_bytes
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
        with TemporaryDirectory(dir=self.folder) as path:
            kept = SumsFolder(Path(path), self.text)
            self.sum_up(settings, kept, WHOLE, progress)
            return scores_of(kept.total(), self.checkpoint.architecture, self.checkpoint.layout, settings)

    def sum_up(self, settings: ImportanceSettings, kept: SumsFolder, share: Share, progress: Progress) -> None:
        """Keep what scores are made of, as far as it is missing.

        Args:
            settings: How a sample's tokens are aggregated.
            kept: Gets the sums of the text's shards.
            share: Which of them, where several processes measure at once.
            progress: Told what is done of what was missing.

        Raises:
            DiskSpaceError: If the disk cannot hold the sums, or neither memory nor disk the hidden states of the text.
        """
        missing = share.of(kept.missing())
        if not missing:
            return
        checkpoint, text, parts = self.checkpoint, kept.text_of(missing), [len(kept.shards[each]) for each in missing]
        taken = len(missing) * sums_bytes(checkpoint.architecture, checkpoint.layout)
        require_free_bytes(kept.path, taken, "what scores are made of")
        if not self.whole:
            sums = sweep_sums(checkpoint, text, parts, settings, self.folder, progress=progress)
            for shard, each in zip(missing, sums, strict=True):
                kept.write(shard, each)
            return
        model, done = load_whole(checkpoint.path), 0
        for shard in missing:
            part = kept.text_of([shard])
            told = part_of(progress, done, text.num_tokens)
            kept.write(
                shard, score_sums(model, checkpoint.architecture, checkpoint.layout, part, settings, progress=told)
            )
            done += part.num_tokens
        del model
        release_memory()

    def moments(
        self,
        readers: Readers,
        kept: MutableMapping[str, Tensor],
        progress: Progress,
        layers: Collection[int] | None = None,
    ) -> None:
        """Measure second moments, as `second_moments` says.

        Args:
            readers: Of what to measure them.
            kept: Gets the matrices.
            progress: Told what is done.
            layers: In which of them; in all by default.

        Raises:
            DiskSpaceError: If neither memory nor disk can hold the hidden states of the text.
        """
        if not self.whole:
            sweep_moments(self.checkpoint, self.text, self.folder, kept, readers, progress=progress, layers=layers)
            return
        model = load_whole(self.checkpoint.path)
        second_moments(model, self.checkpoint.layout, self.text, kept, readers, progress=progress, layers=layers)
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
