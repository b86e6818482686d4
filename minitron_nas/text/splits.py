"""Text read once, split into calibration, validation and training, and packed into files."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Self

from transformers import PreTrainedTokenizerBase

from minitron_nas.errors import DataError
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.atomic import require_free_bytes, whole_folder
from minitron_nas.text.blend import Blend, Place
from minitron_nas.text.document import Document
from minitron_nas.text.packing import pack, packed_blocks
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import Data, TextSource, open_sources, read_documents
from minitron_nas.text.token_log import ONE_PASS_TOKENS, Goals, TokenIds, TokenLog, TokenStream
from minitron_nas.text.tokenization import leading_bos, tokenize
from minitron_nas.text.tokens import PackedTokens, save_blocks, token_dtype

_MIN_CALIBRATION_SEQUENCES = 4
_POSITION_BYTES = 2


@dataclass(frozen=True, slots=True)
class TextReader:
    """Who reads a text, and how much of it.

    Attributes:
        tokenizer: The teacher's.
        vocab_size: Of the model that reads the ids.
        settings: Length of a sequence, and sizes of the parts.
    """

    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    settings: TextSettings

    @property
    def bos(self) -> int | None:
        """What a sequence that begins inside a document begins with."""
        return leading_bos(self.tokenizer) if self.settings.bos == "sequence" else None


@dataclass(frozen=True, slots=True)
class SourceTokens:
    """What became of one source.

    Attributes:
        name: What a plan calls it.
        share: Of the training tokens that it was to have.
        num_documents: Documents that were read from it.
        found_tokens: Their tokens.
        train_tokens: Training tokens that come from it, repetitions included.
    """

    name: str
    share: float
    num_documents: int
    found_tokens: int
    train_tokens: int


@dataclass(frozen=True, slots=True)
class TokenSplits:
    """Text split by document, so that no document is in two parts; memory-mapped."""

    calibration: PackedTokens
    validation: PackedTokens
    train: PackedTokens

    @classmethod
    def load(cls, folder: Path, verify: bool = False) -> Self:
        """Open what `split_text` wrote.

        Args:
            folder: Where it wrote.
            verify: Whether to read all of it, and compare it with the fingerprints that stand in it.

        Raises:
            CheckpointError: If a file holds no packed tokens, or others than were written.
        """
        return cls(*(PackedTokens.load(folder / f"{name}.safetensors", verify) for name in cls.__dataclass_fields__))

    @property
    def one_pass_tokens(self) -> int:
        """Tokens of a training that no budget limits."""
        return min(self.train.num_tokens, ONE_PASS_TOKENS)


def split_text(
    data: Data,
    reader: TextReader,
    seed: int,
    train_tokens: int | None,
    folder: Path,
    max_train_sequences: int | None = None,
    progress: Progress = silent,
) -> tuple[SourceTokens, ...]:
    """Read as much text as is needed, split it, and write `{calibration,validation,train}.safetensors`.

    Args:
        data: What the user gave.
        reader: Whose tokenizer reads it, and how much.
        seed: Decides the order of documents.
        train_tokens: Training tokens needed, or None for one pass over the text.
        folder: Gets the three files, and appears when they are whole.
        max_train_sequences: Leave out training sequences beyond these.
        progress: Told about tokens read, where their number is known before.

    Raises:
        DataError: If the text is missing, holds tokens beyond the vocabulary, or is too short; the message then
            says tokens found and needed.
        DiskSpaceError: If the disk cannot hold the tokens.
    """
    sources, seen = open_sources(data, reader.settings), set[int]()
    documents = [read_documents(source.data, source.settings, seed, seen) for source in sources]
    return split_documents(sources, documents, reader, train_tokens, folder, max_train_sequences, progress)


def split_documents(
    sources: Sequence[TextSource],
    documents: Sequence[Iterable[Document]],
    reader: TextReader,
    train_tokens: int | None,
    folder: Path,
    max_train_sequences: int | None = None,
    progress: Progress = silent,
) -> tuple[SourceTokens, ...]:
    """Split distinct documents in random order, as `split_text` does.

    Validation and calibration take the first `sequence_length` tokens of a document each, so that
    they see many documents; training takes whole documents, those longer than a sequence in several
    sequences, each of which begins with a BOS of its own where `text.bos` says so. Of training text less
    than one sequence is left out, at its end. In each part every source of a blend has its share of the
    tokens. A source of a blend that runs dry in training begins again, within `max_epochs`; without a token
    budget the blend ends there. Text of a single source is written once, however often training will repeat it.

    Tokens go to disk as they are read and never lie in memory as a whole.

    Args:
        sources: One, or those of a blend.
        documents: Of each source.
        reader: Whose tokenizer reads them, and how much.
        train_tokens: Training tokens needed, or None for one pass over the text.
        folder: Gets the three files, and appears when they are whole.
        max_train_sequences: Leave out training sequences beyond these.
        progress: Told about tokens read, where their number is known before.

    Raises:
        DataError: If the text holds tokens beyond the vocabulary, or is too short; the message then says tokens
            found and needed.
        DiskSpaceError: If the disk cannot hold the tokens.
    """
    goals = Goals.of(reader.settings, train_tokens)
    dtype = token_dtype(reader.vocab_size)
    if train_tokens is not None:
        require_free_bytes(folder, goals.total * (2 * dtype.itemsize + _POSITION_BYTES), "the text in tokens")
    with whole_folder(folder) as partial:
        logs = [TokenLog(partial / f"source-{number}.log", dtype) for number in range(len(sources))]
        done = 0
        for source, own, log in zip(sources, documents, logs, strict=True):
            for num_tokens in log.fill(tokenize(own, reader.tokenizer, reader.vocab_size), source.share, goals):
                done += num_tokens
                if train_tokens is not None:
                    progress(min(done, goals.total), goals.total)
        counts = _write_parts(sources, logs, reader, goals, train_tokens, partial, max_train_sequences)
        for file in partial.glob("*.log"):
            file.unlink()
    return counts


def _write_parts(
    sources: Sequence[TextSource],
    logs: Sequence[TokenLog],
    reader: TextReader,
    goals: Goals,
    train_tokens: int | None,
    folder: Path,
    max_train_sequences: int | None,
) -> tuple[SourceTokens, ...]:
    settings = reader.settings
    written, bos = [log.reader() for log in logs], reader.bos
    blend = Blend([log.lengths for log in logs], [source.share for source in sources])
    # Of text that is too short for all, a tenth is for validation and a fifth for calibration: of documents, as these
    # take the first tokens of each and training takes nothing of it.
    usable = int(min(log.num_first(goals.length) / source.share for log, source in zip(logs, sources, strict=True)))
    enough = all(log.enough for log in logs)
    held_out = {
        "validation": goals.validation if enough else min(goals.validation, usable // 10),
        "calibration": goals.calibration if enough else min(goals.calibration, usable // 5),
    }
    parts = {}
    for name, goal in held_out.items():
        beginnings = [written[number].piece(place, goals.length) for number, place in blend.take(goal, goals.length)]
        parts[name] = pack(TokenStream(beginnings, bos), goals.length).first(max(1, goal // goals.length))
        parts[name].save(folder / f"{name}.safetensors")
    repeats = len(sources) > 1 and train_tokens is not None
    trained = [0] * len(sources)

    def pieces(places: Iterable[Place]) -> Iterator[TokenIds]:
        for number, place in places:
            piece = written[number].piece(place)
            trained[number] += len(piece)
            yield piece

    order = blend.rest(goals.train, settings.max_epochs if repeats else 1)
    blocks = packed_blocks(TokenStream(pieces(order), bos), goals.length, max_train_sequences)
    save_blocks(blocks, folder / "train.safetensors", goals.length, reader.vocab_size)
    parts["train"] = PackedTokens.load(folder / "train.safetensors")
    counts = tuple(
        SourceTokens(source.name, source.share, len(log.lengths), log.num_tokens, train)
        for source, log, train in zip(sources, logs, trained, strict=True)
    )
    available = parts["train"].num_tokens * (1 if repeats else settings.max_epochs)
    least_calibration = min(_MIN_CALIBRATION_SEQUENCES, settings.calibration_samples)
    too_few = parts["calibration"].num_sequences < least_calibration
    if not parts["validation"].num_sequences or too_few or available < goals.needed:
        short = min(counts, key=lambda count: count.found_tokens / count.share)
        if blend.dry is not None:
            short = counts[blend.dry]
        raise DataError(
            _too_short_blend(short, goals) if len(sources) > 1 else _too_short(short, parts, goals, settings)
        )
    return counts


def _too_short(count: SourceTokens, parts: dict[str, PackedTokens], goals: Goals, settings: TextSettings) -> str:
    train = parts["train"].num_tokens
    # Of more text at least seven tenths are for training, less what does not fill a sequence of a part.
    missing = max(ceil(goals.needed / settings.max_epochs) - train, 0)
    least = 5 * _MIN_CALIBRATION_SEQUENCES * goals.length
    enough_tokens = max(count.found_tokens + ceil((missing + 3 * goals.length) / 0.7), least)
    way_out = "add text or lower text.sequence_length"
    if goals.needed > goals.length:  # a step that trains nothing asks for one sequence
        way_out = "add text, lower distillation.tokens or text.sequence_length, or allow repeats with text.max_epochs"
    return (
        f"the text is too short: {count.found_tokens:,} tokens found, {count.num_documents:,} documents, each of which "
        f"is in one part only; {train:,} are for training after validation ({parts['validation'].num_tokens:,}) and "
        f"calibration ({parts['calibration'].num_tokens:,}); about {enough_tokens:,} are needed ({goals.needed:,} for "
        f"training); {way_out}"
    )


def _too_short_blend(count: SourceTokens, goals: Goals) -> str:
    return (
        f"the blend is too short: {count.name} ran dry; it has {count.found_tokens:,} tokens, of which "
        f"{count.train_tokens:,} were trained on, repetitions included, and its share of {goals.needed:,} training "
        f"tokens is {ceil(count.share * goals.needed):,}; add text to it, lower its weight or distillation.tokens, or "
        "allow repeats with text.max_epochs"
    )
