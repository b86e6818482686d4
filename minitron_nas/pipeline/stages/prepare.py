"""The stages that prepare the model that a size is pruned from: its scores, and which parts leave first."""

from collections.abc import Collection
from dataclasses import replace

from minitron_nas.importance.layers import Depths, choose_layers
from minitron_nas.importance.passes import CalibrationPass, fits_in_memory, pass_title
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.engine import Done, Left, Stage
from minitron_nas.pipeline.run import Run, Source
from minitron_nas.progress import Progress
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.start import measure_start, possible_start


def prepare_source(run: Run, source: Source, layer_counts: Collection[int]) -> tuple[PreparedTeacher, Done]:
    """Score a model in one pass, rank its parts, and find the basis in which its channels are cut.

    Args:
        run: The run.
        source: The model.
        layer_counts: How many layers the models that are pruned from it keep.

    Returns:
        The prepared model, and the stage that prepared it.
    """
    plan, checkpoint, tokens = run.plan, source.checkpoint, run.tokens
    folder, protected = run.folder.prepared(source.name), plan.space.protected_layers
    channels, note = possible_start(plan.start, checkpoint)
    start = replace(plan.start_settings, channels=channels)
    scored = _score(run, source)

    def action(progress: Progress) -> Left:
        scores = ImportanceScores.load(run.folder.importance(source.name))
        depth = plan.importance.depth
        depths = Depths(layer_counts, protected)
        layers = choose_layers(checkpoint, scores, depth, depths, tokens.calibration, plan.seed, progress)
        order = PruningOrder.from_scores(scores, checkpoint.architecture, protected, layers)
        with run.folder.temporary() as work:
            measures = measure_start(checkpoint, tokens.calibration, start, work, progress=progress)
            write_prepared(folder, order, *measures, merge_heads=start.merge_heads)
        return Left()

    stage = Stage(
        f"{source.name} prepare",
        f"which parts leave first; {note}",
        inputs.of_preparation(plan, source, start, layer_counts),
        needs=(tokens.done, *source.made_by, scored),
        outputs=[folder],
    )
    done = run.engine.run(stage, action)
    return PreparedTeacher.open(checkpoint.path, folder), done


def _score(run: Run, source: Source) -> Done:
    plan, checkpoint = run.plan, source.checkpoint
    folder, whole = run.folder.importance(source.name), fits_in_memory(checkpoint)

    def action(progress: Progress) -> Left:
        text = run.tokens.calibration()
        with run.folder.temporary() as work:
            scores = CalibrationPass(checkpoint, text, whole, work).score(plan.importance, progress)
        about = {
            "source": checkpoint.fingerprint,
            "num_samples": str(text.num_sequences),
            "sequence_length": str(text.input_ids.shape[1]),
            "batch_aggregation": plan.importance.batch_aggregation,
            "sequence_aggregation": plan.importance.sequence_aggregation,
        }
        scores.save(folder, about, text)
        return Left()

    stage = Stage(
        f"{source.name} score",
        pass_title("importance of every part", whole),
        inputs.of_scores(plan, source),
        needs=(run.tokens.done, *source.made_by),
        outputs=[folder],
    )
    return run.engine.run(stage, action)
