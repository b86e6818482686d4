"""Held-out text of several kinds: sequences of each take turns in one stream."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from minitron_nas.errors import DataError
from minitron_nas.text.packing import pack
from minitron_nas.text.sources import TextSource, read_documents
from minitron_nas.text.splits import TextReader
from minitron_nas.text.token_log import TokenIds, TokenStream
from minitron_nas.text.tokenization import tokenize
from minitron_nas.text.tokens import PackedTokens


def read_held_out(source: TextSource, reader: TextReader, num_sequences: int, seed: int) -> PackedTokens:
    """Read the beginnings of documents of one text, as validation does, until they fill some sequences.

    Args:
        source: The text, which nothing is trained on.
        reader: Whose tokenizer reads it, and how long a sequence is.
        num_sequences: How many.
        seed: Decides the order of documents.

    Raises:
        DataError: If the text is missing or too short.
    """
    length = reader.settings.sequence_length
    documents = read_documents(source.data, source.settings, seed)
    pieces = _beginnings(tokenize(documents, reader.tokenizer, reader.vocab_size), length, num_sequences * length)
    tokens = pack(TokenStream(pieces, reader.bos), length).first(num_sequences)
    if tokens.num_sequences < num_sequences:
        raise DataError(
            f"{source.name} is too short: the first {length:,} tokens of its documents fill {tokens.num_sequences:,} "
            f"sequences, and {num_sequences:,} are needed, as many as of the plan's own text; name longer text, or "
            "lower text.validation_samples"
        )
    return tokens


def in_turns(texts: Sequence[PackedTokens]) -> PackedTokens:
    """Return one stream in which the texts take turns: the first sequence of each, then the second of each.

    So the first `n * len(texts)` sequences of it are the first n of every text.

    Args:
        texts: At least one; all have as many sequences, of the same length.
    """
    read = [text.in_memory() for text in texts]
    ids, positions = (
        torch.stack([getattr(text, name) for text in read], dim=1).flatten(0, 1)
        for name in ("input_ids", "position_ids")
    )
    if all(text.added is None for text in read):
        return PackedTokens(ids, positions)
    flags = [torch.zeros(len(text.input_ids), dtype=torch.int64) if text.added is None else text.added for text in read]
    return PackedTokens(ids, positions, added=torch.stack(flags, dim=1).flatten())


def means_by_text(sums: Sequence[float], counts: Tensor, num_texts: int) -> list[float]:
    """Return the mean over the tokens of each text that takes turns in a stream.

    Args:
        sums: Of each sequence, over its tokens.
        counts: (num_sequences,), its tokens that count; sequences that `sums` lacks were not read.
        num_texts: How many take turns.
    """
    counted = counts[: len(sums)].tolist()
    return [sum(sums[text::num_texts]) / max(sum(counted[text::num_texts]), 1) for text in range(num_texts)]


def _beginnings(pieces: Iterable[TokenIds], length: int, wanted: int) -> Iterator[TokenIds]:
    for piece in pieces:
        if wanted <= 0:
            return
        yield piece[:length]
        wanted -= min(len(piece), length)
