"""Packing and splitting, on documents whose tokens are known."""

import re
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from minitron_nas.distillation.losses import IGNORE_LABEL
from minitron_nas.distillation.settings import TextSettings
from minitron_nas.distillation.tokens import PackedTokens, TokenSplits, pack, split_tokens, tokenize
from minitron_nas.errors import DataError
from minitron_nas.testing import tiny_config, tiny_model, tiny_tokenizer

DOCUMENTS = [np.array(ids) for ids in ([5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16])]
LENGTH = 8


class NumberTokenizer:
    """Reads "5 6" as [5, 6], without a token at the end."""

    eos_token_id = None

    def __call__(self, batch, verbose):
        return {"input_ids": [[int(word) for word in text.split()] for text in batch]}


def numbered(lengths) -> Iterator[str]:
    """Documents each of which repeats a token of its own."""
    return (" ".join([str(number)] * length) for number, length in enumerate(lengths))


def split(lengths, tokens, **changes):
    sizes = {"sequence_length": LENGTH, "validation_samples": 2, "calibration_samples": 4, **changes}
    return split_tokens(numbered(lengths), NumberTokenizer(), TextSettings(**sizes), tokens)


def left_for_training(lengths):
    for goal in (2 * LENGTH, 4 * LENGTH):  # validation, calibration
        taken = 0
        while lengths and taken < goal:
            taken, lengths = taken + min(lengths[0], LENGTH), lengths[1:]
    return sum(lengths)


def documents_in(part):
    return sorted(set(part.input_ids.flatten().tolist()))


def test_documents_are_laid_end_to_end_and_positions_restart_at_documents_and_sequences():
    packed = pack(DOCUMENTS, 5)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]  # 15 and 16 fill no sequence
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert packed.input_ids.dtype == packed.position_ids.dtype == torch.int64


def test_a_token_before_a_border_has_no_next_token():
    no = IGNORE_LABEL
    assert pack(DOCUMENTS, 5).labels().tolist() == [[6, 7, no, no, no], [11, 12, 13, 14, no]]


def test_a_document_longer_than_a_sequence_goes_on_in_the_next_one():
    packed = pack([np.arange(7)], 3)
    assert packed.input_ids.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert packed.position_ids.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_nothing_packs_to_no_sequence():
    packed = pack([], 4)
    assert (packed.num_sequences, packed.num_tokens, packed.input_ids.shape) == (0, 0, (0, 4))


@given(lengths=st.lists(st.integers(1, 12), max_size=12), sequence_length=st.integers(1, 9))
def test_packing_keeps_order_and_drops_less_than_a_sequence(lengths, sequence_length):
    pieces = [np.arange(100 * number, 100 * number + length) for number, length in enumerate(lengths)]
    packed = pack(pieces, sequence_length)
    ids = packed.input_ids.flatten().tolist()
    assert ids == [int(token) for piece in pieces for token in piece][: len(ids)]
    assert 0 <= sum(lengths) - packed.num_tokens < sequence_length
    columns = np.arange(packed.num_tokens) % sequence_length
    expected = [min(token % 100, column) for token, column in zip(ids, columns, strict=True)]
    assert packed.position_ids.flatten().tolist() == expected


def test_the_first_sequences_are_the_first_rows():
    first = pack(DOCUMENTS, 3).first(2)
    assert first.input_ids.tolist() == [[5, 6, 7], [8, 9, 10]]
    assert first.position_ids.tolist() == [[0, 1, 2], [0, 0, 1]]


def test_batches_come_in_order_and_the_last_one_may_be_smaller():
    packed = pack(DOCUMENTS, 4)
    batches = list(packed.batches(2))
    assert [indices.tolist() for indices, _ in batches] == [[0, 1], [2]]
    assert torch.equal(torch.cat([batch.input_ids for _, batch in batches]), packed.input_ids)
    assert torch.equal(torch.cat([batch.position_ids for _, batch in batches]), packed.position_ids)


def test_saved_tokens_are_loaded_as_they_were(tmp_path):
    packed = pack(DOCUMENTS, 5)
    packed.save(tmp_path / "tokens.safetensors")
    loaded = PackedTokens.load(tmp_path / "tokens.safetensors")
    assert loaded.fingerprint == packed.fingerprint
    assert torch.equal(loaded.input_ids, packed.input_ids)
    assert torch.equal(loaded.position_ids, packed.position_ids)


def test_saved_splits_are_loaded_part_by_part(tmp_path):
    parts = TokenSplits(*(pack([np.arange(start, start + 6)], 3) for start in (0, 10, 20)))
    parts.save(tmp_path)
    loaded = TokenSplits.load(tmp_path)
    starts = [part.input_ids[0, 0].item() for part in (loaded.calibration, loaded.validation, loaded.train)]
    assert starts == [0, 10, 20]


def test_the_fingerprint_changes_with_a_token_and_with_a_border():
    whole, other = np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])
    prints = {pack(pieces, 4).fingerprint for pieces in ([whole], [other], [whole[:2], whole[2:]], [whole])}
    assert len(prints) == 3


def test_a_document_ends_with_the_end_of_text_token_once():
    tokenizer = tiny_tokenizer()
    plain, ended = tokenize(["abc", f"abc{tokenizer.eos_token}"], tokenizer)
    assert plain.tolist() == ended.tolist()
    assert tokenizer.decode(plain) == f"abc{tokenizer.eos_token}"


def test_a_tokenizer_without_an_end_of_text_token_adds_none():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    (ids,) = tokenize(["abc"], tokenizer)
    assert tokenizer.decode(ids) == "abc"


def test_many_documents_keep_their_order():
    texts = [f"document {number}" for number in range(150)]
    tokenizer = tiny_tokenizer()
    assert [tokenizer.decode(ids[:-1]) for ids in tokenize(texts, tokenizer)] == texts


def test_validation_and_calibration_come_first_and_training_gets_what_it_needs():
    parts = split([LENGTH] * 1000, 10 * LENGTH)
    assert documents_in(parts.validation) == [0, 1]
    assert documents_in(parts.calibration) == [2, 3, 4, 5]
    assert documents_in(parts.train) == list(range(6, 17))  # one sequence more, for what fills none


def test_no_more_text_is_read_than_is_needed():
    texts = numbered([LENGTH] * 1000)
    sizes = TextSettings(sequence_length=LENGTH, validation_samples=2, calibration_samples=4)
    split_tokens(texts, NumberTokenizer(), sizes, 10 * LENGTH)
    assert next(texts).split()[0] == "64"  # one batch of the tokenizer


def test_validation_and_calibration_take_the_beginning_of_a_document_only():
    parts = split([5 * LENGTH] * 100, 10 * LENGTH)
    assert documents_in(parts.validation) == [0, 1]
    assert documents_in(parts.calibration) == [2, 3, 4, 5]
    assert parts.calibration.position_ids.tolist() == [list(range(LENGTH))] * 4


def test_without_a_budget_a_tenth_is_for_validation_a_fifth_for_calibration_and_the_rest_for_training():
    parts = split([LENGTH] * 50, None, validation_samples=100, calibration_samples=100)
    assert documents_in(parts.validation) == list(range(5))
    assert documents_in(parts.calibration) == list(range(5, 15))
    assert documents_in(parts.train) == list(range(15, 50))


def test_less_calibration_than_four_sequences_may_be_asked_for():
    assert split([LENGTH] * 100, LENGTH, calibration_samples=1).calibration.num_sequences == 1


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    tokens=st.integers(1, 400),
    max_epochs=st.integers(1, 3),
)
def test_no_document_is_in_two_parts_and_text_that_is_long_enough_is_not_refused(lengths, tokens, max_epochs):
    try:
        parts = split(lengths, tokens, max_epochs=max_epochs)
    except DataError:
        assert left_for_training(lengths) < tokens + LENGTH
        return
    inside = [documents_in(part) for part in (parts.validation, parts.calibration, parts.train)]
    assert len({number for part in inside for number in part}) == sum(map(len, inside))
    assert 1 <= parts.validation.num_sequences <= 2
    assert parts.calibration.num_sequences == 4
    assert parts.train.num_tokens * max_epochs >= tokens


def test_a_long_document_at_the_border_of_calibration_does_not_make_the_text_too_short():
    # Validation takes 3 documents for 16 tokens, calibration the next 6 for 32; the ninth is long.
    parts = split([6] * 8 + [100] + [8] * 40, 120)
    assert documents_in(parts.calibration)[-1] == 8
    assert parts.train.num_tokens >= 120


def test_the_same_text_gives_the_same_parts():
    lengths = [3 + number % 13 for number in range(60)]
    prints = [
        [part.fingerprint for part in (parts.validation, parts.calibration, parts.train)]
        for parts in (split(lengths, 64), split(lengths, 64))
    ]
    assert prints[0] == prints[1]


def test_too_short_a_text_is_an_error_with_the_tokens_found_and_needed():
    with pytest.raises(DataError, match=r"too short: 80 tokens found, of which 56 are for training after validation "):
        split([LENGTH] * 10, 20 * LENGTH)
    with pytest.raises(DataError, match=r"about 263 are needed \(160 for training\); add text, lower distillation"):
        split([LENGTH] * 10, 20 * LENGTH)


@pytest.mark.parametrize("found", [1, 10, 25, 29])
def test_as_much_text_as_the_error_asks_for_is_enough(found):
    with pytest.raises(DataError, match="too short") as caught:
        split([LENGTH] * found, 22 * LENGTH, validation_samples=99, calibration_samples=99)
    needed = int(re.search(r"about ([\d,]+) are needed", str(caught.value))[1].replace(",", ""))
    assert needed > found * LENGTH
    parts = split([LENGTH] * (needed // LENGTH), 22 * LENGTH, validation_samples=99, calibration_samples=99)
    assert parts.train.num_tokens >= 22 * LENGTH


def test_a_text_that_is_too_short_for_one_pass_may_be_repeated():
    with pytest.raises(DataError, match="allow repeats with text.max_epochs"):
        split([LENGTH] * 40, 60 * LENGTH)
    assert split([LENGTH] * 40, 60 * LENGTH, max_epochs=2).train.num_sequences == 40 - 6


def test_no_text_at_all_is_too_short():
    with pytest.raises(DataError, match="too short: 0 tokens found"):
        split([], None)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "nemotron", "qwen2"])
def test_transformers_does_not_attend_across_a_border(model_type):
    model = tiny_model(tiny_config(model_type))
    first, second = np.arange(3, 14), np.arange(200, 221)
    packed = pack([first, second], 32)
    with torch.no_grad():
        logits = model(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False).logits[0]
        alone = [model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0] for ids in (first, second)]
    torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-5, atol=1e-5)
