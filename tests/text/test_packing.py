"""Sequences that begin inside a document begin as the tokenizer begins a text."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from minitron_nas.text import packing
from minitron_nas.text.packing import pack, pack_all, packed_blocks
from minitron_nas.text.token_log import TokenStream
from minitron_nas.text.tokens import IGNORE_LABEL, PackedTokens

BOS = 2
DOCUMENTS = [np.array(ids) for ids in ([BOS, 6, 7], [BOS, 9, 10, 11, 12, 13, 14, 15], [BOS, 16])]


def test_a_sequence_that_begins_inside_a_document_begins_with_bos():
    packed = pack(TokenStream(DOCUMENTS, BOS), 5)
    assert packed.input_ids.tolist() == [[BOS, 6, 7, BOS, 9], [BOS, 10, 11, 12, 13], [BOS, 14, 15, BOS, 16]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4], [0, 1, 2, 0, 1]]
    assert packed.added.tolist() == [False, True, True]


def test_an_added_bos_predicts_nothing_and_counts_nowhere():
    no = IGNORE_LABEL
    packed = pack(TokenStream(DOCUMENTS, BOS), 5)
    assert packed.labels().tolist() == [[6, 7, no, 9, no], [no, 11, 12, 13, no], [no, 15, no, 16, no]]
    assert packed.counted()[:, 0].tolist() == [True, False, False]
    assert packed.counted()[:, 1:].all()
    assert packed.num_labels().tolist() == [3, 3, 2]
    assert packed.num_counted().tolist() == [5, 4, 4]


def test_without_a_bos_nothing_is_added():
    assert pack(TokenStream(DOCUMENTS), 5).added is None
    assert torch.equal(pack(TokenStream(DOCUMENTS), 5).input_ids, pack(DOCUMENTS, 5).input_ids)


def test_a_document_that_begins_a_sequence_keeps_its_own_beginning():
    packed = pack(TokenStream([np.array([BOS, 3, 4]), np.array([5, 6, 7])], BOS), 3)
    assert packed.input_ids.tolist() == [[BOS, 3, 4], [5, 6, 7]]
    assert packed.added is None


some_documents = st.lists(st.integers(1, 40), max_size=20)


def pieces_of(lengths):
    """Documents that begin with BOS, with tokens of their own."""
    return [
        np.concatenate([[BOS], np.arange(100 * n + 100, 100 * n + 99 + length)]) for n, length in enumerate(lengths)
    ]


@given(lengths=some_documents, sequence_length=st.integers(2, 9))
def test_every_token_of_the_text_is_there_once_and_every_sequence_begins_with_bos(lengths, sequence_length):
    pieces = pieces_of(lengths)
    whole, rest = pack_all(TokenStream(pieces, BOS), sequence_length)
    text = []
    for part in (whole, rest):
        assert (part.input_ids[:, 0] == BOS).all()
        text += part.input_ids[part.counted()].tolist()
    assert text == [int(token) for piece in pieces for token in piece]
    assert rest.num_tokens < sequence_length


@given(
    lengths=some_documents,
    sequence_length=st.integers(2, 9),
    block_tokens=st.integers(1, 30),
    most=st.none() | st.integers(0, 40),
)
def test_packing_block_by_block_is_packing_at_once(lengths, sequence_length, block_tokens, most):
    stream = TokenStream(pieces_of(lengths), BOS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK_TOKENS", block_tokens)
        blocks = list(packed_blocks(stream, sequence_length, most))
    expected = pack(stream, sequence_length)
    expected = expected if most is None else expected.first(most)
    assert torch.equal(torch.cat([block.input_ids for block in blocks]), expected.input_ids)
    assert torch.equal(torch.cat([block.position_ids for block in blocks]), expected.position_ids)
    assert torch.equal(torch.cat([block.counted() for block in blocks]), expected.counted())


def test_what_was_added_is_saved_and_selected_with_its_sequences(tmp_path):
    packed = pack(TokenStream(DOCUMENTS, BOS), 5)
    packed.save(tmp_path / "tokens.safetensors")
    loaded = PackedTokens.load(tmp_path / "tokens.safetensors", verify=True)
    assert loaded.fingerprint == packed.fingerprint
    for same in (loaded, loaded.in_memory(), packed.with_random_tokens(0.5, 20)):
        assert torch.equal(same.counted(), packed.counted())
    assert loaded.first(2).labels().tolist() == packed.labels()[:2].tolist()
    some = loaded.sequences(torch.tensor([2, 0]))
    assert some.labels().tolist() == packed.labels()[[2, 0]].tolist()
    assert loaded.first(1).fingerprint == pack(DOCUMENTS[:2], 5).first(1).fingerprint


def test_the_fingerprint_tells_an_added_bos_from_one_of_the_text():
    added = pack(TokenStream([np.array([BOS, 3, 4, 5])], BOS), 3)
    alike = pack([np.array([BOS, 3, 4]), np.array([BOS, 5, 6])], 3)
    whole = pack(TokenStream([np.array([BOS, 3, 4, 5, 6])], BOS), 3)
    assert torch.equal(whole.input_ids, alike.input_ids)
    assert torch.equal(whole.position_ids, alike.position_ids)
    assert whole.fingerprint != alike.fingerprint
    assert added.num_sequences == 1


def test_a_file_of_an_earlier_version_is_read_as_it_was_written(tmp_path):
    from safetensors.torch import safe_open, save_file

    pack(DOCUMENTS, 5).save(tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        about, arrays = file.metadata(), {name: file.get_tensor(name) for name in ("input_ids", "position_ids")}
    save_file(arrays, tmp_path / "old.safetensors", about)
    old = PackedTokens.load(tmp_path / "old.safetensors", verify=True)
    assert old.added is None
    assert old.fingerprint == pack(DOCUMENTS, 5).fingerprint
