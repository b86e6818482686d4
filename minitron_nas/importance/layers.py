"""Which layers a model of each depth keeps, measured on the source where the settings ask for it."""

from collections.abc import Callable, Collection

from torch import Tensor

from minitron_nas.execution.device import release_memory
from minitron_nas.importance.depth import make_criterion
from minitron_nas.importance.depth_modes import best_blocks, greedy_layers, layer_table, layers_alone, ranked_layers
from minitron_nas.importance.passes import require_whole_model
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import DepthSettings
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.loading import load_for_inference
from minitron_nas.progress import Progress, silent
from minitron_nas.text.tokens import PackedTokens


def choose_layers(
    checkpoint: Checkpoint,
    scores: ImportanceScores,
    settings: DepthSettings,
    protected_layers: Collection[int],
    counts: Collection[int],
    calibration: Callable[[], PackedTokens],
    seed: int,
    progress: Progress = silent,
) -> Tensor:
    """Return which layers models of each depth keep, as `PruningOrder.layers` has it.

    Args:
        checkpoint: The source; loaded only if layers have to be measured.
        scores: Its scores; Block Importance among them.
        settings: Criterion and mode.
        protected_layers: Layers that stay, negative ones from the end.
        counts: How many layers candidates keep; mode `layers` answers for all numbers.
        calibration: Reads the text to measure on.
        seed: Of the examples in a task's prompts.
        progress: Told what is measured.

    Raises:
        PlanError: If lm-eval does not know the task, or it has no accuracy; or if layers have to be measured on
            a model that does not fit into memory.
        InvalidArchitectureError: If protected layers leave no block of the size that has to go.
    """
    num_layers = checkpoint.architecture.num_hidden_layers
    protected = {layer % num_layers for layer in protected_layers}
    if not settings.needs_model:
        return ranked_layers(scores.layers.tolist(), protected)
    wanted = {count for count in counts if count < num_layers}
    if not wanted:
        return layer_table({}, num_layers)
    require_whole_model(checkpoint, settings)
    text = calibration().first(settings.num_sequences) if settings.needs_text else None
    model = load_for_inference(checkpoint.path)
    criterion = make_criterion(model, checkpoint.layout, settings, text, checkpoint.path, seed)
    if settings.mode == "layers":
        table = layers_alone(criterion, num_layers, protected, progress)
    elif settings.mode == "block":
        table = best_blocks(criterion, num_layers, protected, wanted, progress)
    else:
        table = greedy_layers(criterion, num_layers, protected, min(wanted), progress)
    del model, criterion
    release_memory()
    return table
