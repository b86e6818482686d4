"""The stages that prepare the model that a size is pruned from: score, and which parts leave first."""

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minitron_nas.importance.layers import choose_layers
from minitron_nas.importance.passes import fits_in_memory, pass_title, score_checkpoint
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.pipeline.engine import Engine
from minitron_nas.pipeline.hop import Hop
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.stages.tokenize import Tokens
from minitron_nas.progress import Progress
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.start import measure_start, possible_start
from minitron_nas.text.tokens import PackedTokens


def prepare_source(
    engine: Engine, plan: FamilyPlan, hop: Hop, tokens: Tokens, layer_counts: Collection[int]
) -> PreparedTeacher:
    """Score the source in one pass, rank its parts, and find the basis in which its channels are cut.

    Args:
        engine: Runs the stages.
        plan: Says how to score, and which layers leave first.
        hop: The source.
        tokens: The run's tokens.
        layer_counts: How many layers the models that are pruned from the source keep.
    """
    scores_folder = engine.folder.importance(hop.source_name)
    prepared_folder = engine.folder.prepared(hop.source_name)
    start, note = possible_start(plan.start, hop.source)
    whole = fits_in_memory(hop.source)

    def score(progress: Progress) -> None:
        text = tokens.part("calibration")
        scores = score_checkpoint(hop.source, text, plan.importance, whole, engine.folder.path, progress)
        about = {
            "source": hop.source.fingerprint,
            "num_samples": str(text.num_sequences),
            "sequence_length": str(text.input_ids.shape[1]),
            "batch_aggregation": plan.importance.batch_aggregation,
            "sequence_aggregation": plan.importance.sequence_aggregation,
        }
        scores.save(scores_folder, about, text)

    def calibration() -> PackedTokens:
        return tokens.part("calibration")

    def prepare(progress: Progress) -> None:
        scores = ImportanceScores.load(scores_folder)
        protected = plan.space.protected_layers
        depth = plan.importance.depth
        layers = choose_layers(hop.source, scores, depth, protected, layer_counts, calibration, plan.seed, progress)
        order = PruningOrder.from_scores(scores, hop.source.architecture, protected, layers)
        repair = plan.repair == "ridge"
        with TemporaryDirectory(dir=engine.folder.path) as work:
            measures = measure_start(hop.source, calibration, start == "rotate", repair, Path(work), progress=progress)
            write_prepared(prepared_folder, order, *measures, merge_heads=plan.merge_heads)

    inputs: dict[str, Any] = {
        "source": hop.source.fingerprint,
        "tokens": tokens.fingerprint,
        "importance": plan.importance.model_dump(exclude={"depth"}),
    }
    title = pass_title("importance of every part", whole)
    engine.stage(f"{hop.source_name} score", title, inputs, [scores_folder], score)
    inputs |= {
        "protected": plan.space.protected_layers,
        "depth": plan.importance.depth.model_dump(),
        "layer_counts": sorted(layer_counts) if plan.importance.depth.needs_model else None,
        "start": [start, plan.repair, plan.merge_heads],
        "seed": plan.seed,
    }
    engine.stage(f"{hop.source_name} prepare", f"which parts leave first; {note}", inputs, [prepared_folder], prepare)
    return PreparedTeacher.open(hop.source.path, prepared_folder)
