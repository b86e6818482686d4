"""How documents become tokens."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from minitron_nas.errors import DataError
from minitron_nas.text.document import Document
from minitron_nas.text.token_log import TokenStream

_BATCH = 64


def leading_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the token that a tokenizer puts before every text, if it does and calls it BOS.

    Args:
        tokenizer: The teacher's.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos if bos is not None and list(tokenizer(["a"], verbose=False)["input_ids"][0])[:1] == [bos] else None


def tokenize(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> TokenStream:
    """Return each document's token ids, (num_tokens,), int64, as they are read.

    A text begins as the tokenizer begins it, once, and is ended by the tokenizer's end-of-text token. A conversation is
    what the chat template makes of it, to which nothing is added.

    Args:
        documents: Texts and conversations.
        tokenizer: The teacher's.
        vocab_size: Of the model that reads the ids.

    Raises:
        DataError: While it is read: if there is a conversation that the tokenizer has no template for, or that its
            template refuses; or if an id lies beyond the vocabulary.
    """
    bos = leading_bos(tokenizer)
    return TokenStream(_pieces(iter(documents), tokenizer, vocab_size, bos), bos)


def _pieces(
    stream: Iterator[Document], tokenizer: PreTrainedTokenizerBase, vocab_size: int, bos: int | None
) -> Iterator[NDArray[np.int64]]:
    while batch := list(islice(stream, _BATCH)):
        texts = [document for document in batch if isinstance(document, str)]
        chats = [document.render(tokenizer) for document in batch if not isinstance(document, str)]
        text_ids = iter(tokenizer(texts, verbose=False)["input_ids"] if texts else ())
        chat_ids = iter(tokenizer(chats, add_special_tokens=False, verbose=False)["input_ids"] if chats else ())
        for document in batch:
            ids = next(text_ids) if isinstance(document, str) else next(chat_ids)
            if isinstance(document, str):
                ids = _ended(_begun(ids, bos), tokenizer.eos_token_id)
            array = np.array(ids, dtype=np.int64)
            if (largest := int(array.max(initial=0))) >= vocab_size:
                raise DataError(
                    f"the tokenizer makes {tokenizer.convert_ids_to_tokens(largest)!r}, id {largest}, of a document, "
                    f"but the model has vocab_size={vocab_size}; take this token out of the text, or call "
                    "model.resize_token_embeddings and save the model again"
                )
            yield array


def _begun(ids: list[int], bos: int | None) -> list[int]:
    """One BOS at the beginning, also where the text brings one of its own."""
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _ended(ids: list[int], end: int | None) -> list[int]:
    return ids if end is None or ids[-1:] == [end] else [*ids, end]
