"""The stages that prepare the model that a size is pruned from: its scores, and which parts leave first."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from minitron_nas.importance.layers import Depths, choose_layers
from minitron_nas.importance.passes import CalibrationPass, pass_title
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.models.placement import fits_in_memory
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.engine import Done, Left, Stage
from minitron_nas.pipeline.run import Run, Source
from minitron_nas.progress import Progress
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import write_prepared
from minitron_nas.pruning.settings import StartSettings
from minitron_nas.pruning.start import measure_start, possible_start
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
    scored = _score(run, source)

    def action(progress: Progress) -> Left:
        with run.folder.temporary() as work:
            run.workers.call(
                prepare,
                progress,
                files=CalibrationFiles(checkpoint.path, tokens.file("calibration")),
                scores=run.folder.importance(source.name),
                depths=Depths(plan.importance.depth, frozenset(layer_counts), protected, plan.seed),
                start=start,
                folder=folder,
                work=work,
            )
        return Left()

    stage = Stage(
        f"{source.name} prepare",
        f"which parts leave first; {note}",
        inputs.of_preparation(plan, source, start, layer_counts),
        needs=(tokens.done, *source.made_by, scored),
        outputs=[folder],
    )
    return run.engine.run(stage, action)


def _score(run: Run, source: Source) -> Done:
    plan, checkpoint = run.plan, source.checkpoint
    folder, calibration = run.folder.importance(source.name), run.tokens.file("calibration")
    whole = not run.workers.here or fits_in_memory(checkpoint)

    def action(progress: Progress) -> Left:
        with run.folder.temporary() as work:
            run.workers.call(
                score,
                progress,
                files=CalibrationFiles(checkpoint.path, calibration),
                settings=plan.importance,
                folder=folder,
                work=work,
            )
        return Left()

    stage = Stage(
        f"{source.name} score",
        pass_title("importance of every part", whole),
        inputs.of_scores(plan, source),
        needs=(run.tokens.done, *source.made_by),
        outputs=[folder],
    )
    return run.engine.run(stage, action)


def score(files: CalibrationFiles, settings: ImportanceSettings, folder: Path, work: Path, progress: Progress) -> None:
    """Score every part of a model and keep the scores.

    Args:
        files: The model and the text.
        settings: The two aggregations.
        folder: Where the scores go.
        work: A folder for what memory is too small for.
        progress: Told what is done.
    """
    checkpoint, text = files.open(), files.tokens()
    with TemporaryDirectory(dir=work) as own:
        along = CalibrationPass(checkpoint, text, fits_in_memory(checkpoint), Path(own))
        scores = along.score(settings, progress)
    about = {
        "source": checkpoint.fingerprint,
        "num_samples": str(text.num_sequences),
        "sequence_length": str(text.input_ids.shape[1]),
        "batch_aggregation": settings.batch_aggregation,
        "sequence_aggregation": settings.sequence_aggregation,
    }
    scores.save(folder, about, text)


def prepare(
    files: CalibrationFiles,
    scores: Path,
    depths: Depths,
    start: StartSettings,
    folder: Path,
    work: Path,
    progress: Progress,
) -> None:
    """Rank a model's parts, find the basis in which its channels are cut, and keep both.

    Args:
        files: The model and the text to measure on.
        scores: The folder of its scores.
        depths: How many layers models keep, which stay in all of them, and by what they are chosen.
        start: How the model is cut.
        folder: Where it goes.
        work: A folder for what memory is too small for.
        progress: Told what is done.
    """
    checkpoint, kept = files.open(), ImportanceScores.load(scores)
    layers = choose_layers(checkpoint, kept, depths, files.tokens, progress)
    order = PruningOrder.from_scores(kept, checkpoint.architecture, [*depths.protected_layers], layers)
    with TemporaryDirectory(dir=work) as own:
        measures = measure_start(checkpoint, files.tokens, start, Path(own), progress=progress)
        write_prepared(folder, order, *measures, merge_heads=start.merge_heads)
