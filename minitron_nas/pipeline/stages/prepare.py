"""The stages that prepare the model that a size is pruned from: its scores, and which parts leave first."""

import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minitron_nas.distillation.signals.folder import Share
from minitron_nas.importance.layers import Depths, choose_layers
from minitron_nas.importance.passes import CalibrationPass, pass_title
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.importance.sums import SumsFolder, scores_of, text_shards
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.models.placement import fits_in_memory
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.engine import Done, Left, Stage
from minitron_nas.pipeline.run import Run, Source
from minitron_nas.progress import Progress, one_of
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import write_prepared
from minitron_nas.pruning.settings import StartSettings
from minitron_nas.pruning.start import found_start, keep_moments, possible_start
from minitron_nas.text.tokens import PackedTokens


@dataclass(frozen=True, slots=True)
class CalibrationFiles:
    """A model and the text on its way through it, as paths that any worker can open.

    Attributes:
        source: The model's folder.
        text: The text.
    """

    source: Path
    text: Path

    def open(self) -> Checkpoint:
        """Open the model, whose values were read before."""
        return open_checkpoint(self.source, read_values=False)

    def tokens(self) -> PackedTokens:
        """Memory-map the text."""
        return PackedTokens.load(self.text)


def prepare_source(run: Run, source: Source, layer_counts: Collection[int]) -> Done:
    """Score a model in one pass, rank its parts, and find the basis in which its channels are cut.

    Args:
        run: The run.
        source: The model.
        layer_counts: How many layers the models that are pruned from it keep.

    Returns:
        The stage that prepared it.
    """
    plan, checkpoint, tokens = run.plan, source.checkpoint, run.tokens
    folder, protected = run.folder.prepared(source.name), plan.space.protected_layers
    channels, note = possible_start(plan.start, checkpoint)
    start = replace(plan.start_settings, channels=channels)
    scored, under_way = _score(run, source), run.folder.checkpoints(f"{source.name}-prepare")

    def action(progress: Progress) -> Left:
        with run.folder.temporary() as work:
            files = CalibrationFiles(checkpoint.path, tokens.file("calibration"))
            measured: dict[str, Any] = {"files": files, "start": start, "moments": under_way / stage.fingerprint}
            passes = start.needs_moments + plan.importance.depth.needs_model
            if start.needs_moments:
                shares = _shared_out(checkpoint.architecture.num_hidden_layers, run.workers.room())
                parts = [{**measured, "layers": layers, "work": work} for layers in shares]
                run.workers.share(measure_moments, parts, one_of(progress, 0, passes))
            run.workers.call(
                prepare,
                one_of(progress, passes - 1, passes),
                **measured,
                scores=run.folder.importance(source.name),
                depths=Depths(plan.importance.depth, frozenset(layer_counts), protected, plan.seed),
                folder=folder,
            )
        return Left()

    stage = Stage(
        f"{source.name} prepare",
        f"which parts leave first; {note}",
        inputs.of_preparation(plan, source, start, layer_counts),
        needs=(tokens.done, *source.made_by, scored),
        outputs=[folder],
    )
    done = run.engine.run(stage, action)
    shutil.rmtree(under_way, ignore_errors=True)
    return done


def _shared_out(num_layers: int, num_shares: int) -> list[range]:
    """Share layers out among at most so many, as equally as their number allows."""
    count = min(num_shares, num_layers)
    return [range(*pair) for pair in pairwise(number * num_layers // count for number in range(count + 1))]


def _score(run: Run, source: Source) -> Done:
    plan, checkpoint = run.plan, source.checkpoint
    files = CalibrationFiles(checkpoint.path, run.tokens.file("calibration"))
    folder = run.folder.importance(source.name)
    whole = not run.workers.here or fits_in_memory(checkpoint)
    under_way = run.folder.checkpoints(f"{source.name}-score")

    def action(progress: Progress) -> Left:
        with run.folder.temporary() as work:
            sums = under_way / stage.fingerprint
            measured: dict[str, Any] = {"files": files, "settings": plan.importance, "sums": sums}
            count = min(run.workers.room(), len(text_shards(files.tokens().num_sequences)))
            shares = [Share(number, count) for number in range(count)]
            run.workers.share(sum_up, [{**measured, "share": share, "work": work} for share in shares], progress)
            run.workers.call(score, **measured, folder=folder)
        return Left()

    stage = Stage(
        f"{source.name} score",
        pass_title("importance of every part", whole),
        inputs.of_scores(plan, source),
        needs=(run.tokens.done, *source.made_by),
        outputs=[folder],
    )
    done = run.engine.run(stage, action)
    shutil.rmtree(under_way, ignore_errors=True)
    return done


def sum_up(
    files: CalibrationFiles,
    settings: ImportanceSettings,
    sums: Path,
    share: Share,
    work: Path,
    progress: Progress,
) -> None:
    """Measure a share of what a model's scores are made of.

    Args:
        files: The model and the text.
        settings: How activations become scores.
        sums: Gets the sums of the text's shards.
        share: Which of the shards.
        work: A folder for what memory is too small for.
        progress: Told what is done.
    """
    checkpoint, text = files.open(), files.tokens()
    with TemporaryDirectory(dir=work) as own:
        along = CalibrationPass(checkpoint, text, fits_in_memory(checkpoint), Path(own))
        along.sum_up(settings, SumsFolder(sums, text), share, progress)


def score(files: CalibrationFiles, settings: ImportanceSettings, sums: Path, folder: Path) -> None:
    """Add up what a model's scores are made of, and keep them.

    Args:
        files: The model and the text.
        settings: How activations become scores.
        sums: The sums of all of its shards.
        folder: Where the scores go.
    """
    checkpoint, text = files.open(), files.tokens()
    total = SumsFolder(sums, text).total()
    scores = scores_of(total, checkpoint.architecture, checkpoint.layout, settings)
    about = {
        "source": checkpoint.fingerprint,
        "num_samples": str(text.num_sequences),
        "sequence_length": str(text.input_ids.shape[1]),
        "batch_aggregation": settings.batch_aggregation,
        "sequence_aggregation": settings.sequence_aggregation,
    }
    scores.save(folder, about, text)


def measure_moments(
    files: CalibrationFiles, start: StartSettings, moments: Path, layers: range, work: Path, progress: Progress
) -> None:
    """Measure the second moments that a start needs in some layers, as far as they are missing.

    Args:
        files: The model and the text.
        start: How the model is cut.
        moments: Gets them.
        layers: In which layers.
        work: A folder for what memory is too small for.
        progress: Told what is done.
    """
    with TemporaryDirectory(dir=work) as own:
        keep_moments(files.open(), files.tokens, start, moments, Path(own), layers, progress=progress)


def prepare(
    files: CalibrationFiles,
    scores: Path,
    depths: Depths,
    start: StartSettings,
    moments: Path,
    folder: Path,
    progress: Progress,
) -> None:
    """Rank a model's parts, find the basis in which its channels are cut, and keep both.

    Args:
        files: The model and the text to measure on.
        scores: The folder of its scores.
        depths: How many layers models keep, which stay in all of them, and by what they are chosen.
        start: How the model is cut.
        moments: What `measure_moments` measured; what is kept of it is moved, and measured again by whoever takes
            over from a worker that was lost then.
        folder: Where it goes.
        progress: Told what is done.
    """
    checkpoint, kept = files.open(), ImportanceScores.load(scores)
    layers = choose_layers(checkpoint, kept, depths, files.tokens, progress)
    order = PruningOrder.from_scores(kept, checkpoint.architecture, [*depths.protected_layers], layers)
    if start.needs_moments:
        with TemporaryDirectory(dir=moments) as own:
            keep_moments(checkpoint, files.tokens, start, moments, Path(own))
    write_prepared(folder, order, *found_start(checkpoint, start, moments), merge_heads=start.merge_heads)
