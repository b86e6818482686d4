"""Which layers a model of each depth keeps, measured on the source where the settings ask for it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.rules import layers_that_stay, require_keys, require_last_kind
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import InvalidArchitectureError, PlanError
from minitron_nas.execution.device import release_memory
from minitron_nas.importance.depth import make_criterion
from minitron_nas.importance.depth_modes import best_blocks, greedy_layers, layer_table, layers_alone, ranked_layers
from minitron_nas.importance.passes import require_whole_model
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import DepthSettings
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.loading import load_whole
from minitron_nas.progress import Progress, silent
from minitron_nas.text.tokens import PackedTokens


@dataclass(frozen=True, slots=True)
class Depths:
    """What the models that are pruned from a source ask of its layers.

    Attributes:
        settings: By which criterion and in which mode layers are chosen.
        counts: How many layers they keep.
        protected_layers: Layers that stay in all of them, negative ones from the end.
        seed: Of the examples in a task's prompts, where a task decides.
    """

    settings: DepthSettings
    counts: Collection[int]
    protected_layers: Collection[int]
    seed: int


def choose_layers(
    checkpoint: Checkpoint,
    scores: ImportanceScores,
    depths: Depths,
    calibration: Callable[[], PackedTokens],
    progress: Progress = silent,
) -> Tensor:
    """Return which layers models of each depth keep, as `PruningOrder.layers` has it.

    Args:
        checkpoint: The source; loaded only if layers have to be measured.
        scores: Its scores; Block Importance among them.
        depths: The numbers of layers to answer for, and the layers that stay; mode `layers` answers for all numbers.
        calibration: Reads the text to measure on.
        progress: Told what is measured.

    Raises:
        PlanError: If lm-eval does not know the task, or it has no accuracy; or if layers have to be measured on
            a model that does not fit into memory.
        InvalidArchitectureError: If protected layers leave no block of the size that has to go.
    """
    settings = depths.settings
    num_layers, kinds = checkpoint.architecture.num_hidden_layers, checkpoint.architecture.layer_kinds
    protected = layers_that_stay(depths.protected_layers, checkpoint.architecture, checkpoint.layout)
    if not settings.needs_model:
        return ranked_layers(scores.layers.tolist(), protected, kinds)
    wanted = {count for count in depths.counts if count < num_layers}
    if not wanted:
        return layer_table({}, num_layers)
    require_whole_model(checkpoint, settings)
    text = calibration().first(settings.num_sequences) if settings.needs_text else None
    model = load_whole(checkpoint.path)
    criterion = make_criterion(model, checkpoint.layout, settings, text, checkpoint.path, depths.seed)
    if settings.mode == "layers":
        table = layers_alone(criterion, num_layers, protected, progress, kinds)
    elif settings.mode == "block":
        table = best_blocks(criterion, num_layers, protected, wanted, progress, kinds)
    else:
        table = greedy_layers(criterion, num_layers, protected, min(wanted), progress, kinds)
    del model, criterion
    release_memory()
    return table


def drop_from(source: Architecture, layout: Layout, shape: Mapping[str, int], drop_layers: Sequence[int]) -> list[int]:
    """Return the layers of the source that stay when some that are named leave.

    Args:
        source: The shape to prune.
        layout: The table of its family.
        shape: The sizes that are named beside.
        drop_layers: Indices, negative ones from the end.

    Raises:
        PlanError: If the shape names another number of layers.
        InvalidArchitectureError: If a layer does not exist, or none would stay, or one would without the layer whose
            keys and values it reads, or behind all whose kind the last has to be of.
    """
    num_layers = source.num_hidden_layers
    unknown = [layer for layer in drop_layers if not -num_layers <= layer < num_layers]
    if unknown:
        raise InvalidArchitectureError(
            f"drop_layers names layer {unknown[0]}, which does not exist; the source has {num_layers} layers (0 to "
            f"{num_layers - 1}, or -{num_layers} to -1 from the end)"
        )
    dropped = {layer % num_layers for layer in drop_layers}
    kept = [layer for layer in range(num_layers) if layer not in dropped]
    if not kept:
        raise InvalidArchitectureError(f"drop_layers names all {num_layers} layers of the source; keep at least one")
    require_keys(source.with_layers(kept))
    require_last_kind(source.with_layers(kept), layout)
    given = shape.get("num_hidden_layers", len(kept))
    if given != len(kept):
        raise PlanError(
            f"drop_layers leaves {len(kept)} of {num_layers} layers, but the shape has num_hidden_layers={given}; "
            "leave num_hidden_layers out, or name other layers"
        )
    return kept
