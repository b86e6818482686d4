"""Splitting text into parts, one source or a blend, on documents whose tokens are known."""

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from minitron_nas.errors import DataError, DiskSpaceError
from minitron_nas.testing import tiny_tokenizer
from minitron_nas.text import token_log
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import TextSource
from minitron_nas.text.splits import TextReader, TokenSplits, split_documents, split_text

LENGTH = 8
NUM_TOKENS = 10_000
FILES = ["calibration.safetensors", "train.safetensors", "validation.safetensors"]


class NumberTokenizer:
    """Reads "5 6" as [5, 6], without a token at the end."""

    eos_token_id = None

    def __call__(self, batch, verbose):
        return {"input_ids": [[int(word) for word in text.split()] for text in batch]}


def numbered(lengths, first=0) -> Iterator[str]:
    """Documents each of which repeats a token of its own."""
    return (" ".join([str(number)] * length) for number, length in enumerate(lengths, start=first))


def split_all(documents, shares, tokens, most=None, **changes):
    """Split documents of several sources; return the parts and the counts."""
    sizes = {"sequence_length": LENGTH, "validation_samples": 2, "calibration_samples": 4, **changes}
    chosen = TextSettings(**sizes)
    sources = [TextSource(f"source {n}", None, share, chosen) for n, share in enumerate(shares)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokens"
        counts = split_documents(
            sources, documents, TextReader(NumberTokenizer(), NUM_TOKENS, chosen), tokens, path, most
        )
        assert sorted(file.name for file in path.iterdir()) == FILES
        return TokenSplits.load(path), counts


def split(lengths, tokens, **changes):
    return split_all([numbered(lengths)], [1.0], tokens, **changes)[0]


def left_for_training(lengths):
    for goal in (2 * LENGTH, 4 * LENGTH):  # validation, calibration
        taken = 0
        while lengths and taken < goal:
            taken, lengths = taken + min(lengths[0], LENGTH), lengths[1:]
    return sum(lengths)


def documents_in(part):
    return sorted(set(part.input_ids.flatten().tolist()))


def test_validation_and_calibration_come_first_and_training_gets_what_it_needs():
    parts = split([LENGTH] * 1000, 10 * LENGTH)
    assert documents_in(parts.validation) == [0, 1]
    assert documents_in(parts.calibration) == [2, 3, 4, 5]
    assert documents_in(parts.train) == list(range(6, 17))  # one sequence more, for what fills none


def test_no_more_text_is_read_than_is_needed():
    texts = numbered([LENGTH] * 1000)
    split_all([texts], [1.0], 10 * LENGTH)
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


@pytest.mark.parametrize("tokens", [None, 20 * LENGTH])
def test_long_documents_are_not_all_held_out(tokens):
    parts = split([10 * LENGTH] * 40, tokens, validation_samples=99, calibration_samples=99)
    assert documents_in(parts.validation) == list(range(4))
    assert documents_in(parts.calibration) == list(range(4, 12))
    assert documents_in(parts.train)[0] == 12


def test_the_same_text_gives_the_same_parts():
    lengths = [3 + number % 13 for number in range(60)]
    prints = [
        [part.fingerprint for part in (parts.validation, parts.calibration, parts.train)]
        for parts in (split(lengths, 64), split(lengths, 64))
    ]
    assert prints[0] == prints[1]


def test_too_short_a_text_is_an_error_with_the_tokens_found_and_needed():
    with pytest.raises(
        DataError, match=r"too short: 80 tokens found, 10 documents, .*; 56 are for training after validation "
    ):
        split([LENGTH] * 10, 20 * LENGTH)
    with pytest.raises(DataError, match=r"about 263 are needed \(160 for training\); add text, lower distillation"):
        split([LENGTH] * 10, 20 * LENGTH)


def test_where_nothing_is_trained_too_short_a_text_names_no_setting_of_training():
    with pytest.raises(DataError, match=r"too short: .*; add text or lower text\.sequence_length$"):
        split([LENGTH] * 2, None)


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


def test_training_sequences_beyond_those_that_are_asked_for_are_left_out():
    parts, _ = split_all([numbered([100] * 50)], [1.0], 10 * LENGTH, most=10)
    assert parts.train.num_sequences == 10  # the last document brought more


def share_of_first(part, border=5000):
    return (part.input_ids.long() < border).float().mean().item()


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_each_source_has_its_share_of_the_tokens_of_every_part_however_long_its_documents_are(share):
    long, short = numbered([400] * 300), numbered([3] * 40_000, first=5000)
    parts, counts = split_all(
        [long, short], [share, 1 - share], 16_000, validation_samples=100, calibration_samples=100
    )
    assert share_of_first(parts.validation) == pytest.approx(share, abs=0.02)
    assert share_of_first(parts.calibration) == pytest.approx(share, abs=0.02)
    assert share_of_first(parts.train) == pytest.approx(share, abs=400 / 16_000)
    assert [count.name for count in counts] == ["source 0", "source 1"]
    assert counts[0].train_tokens == pytest.approx(share * 16_000, abs=400)
    assert sum(count.train_tokens for count in counts) >= 16_000


def test_no_document_of_a_blend_is_in_two_parts():
    parts, _ = split_all([numbered([5] * 200), numbered([9] * 200, first=5000)], [0.5, 0.5], 500)
    inside = [documents_in(part) for part in (parts.validation, parts.calibration, parts.train)]
    assert len({number for part in inside for number in part}) == sum(map(len, inside))


def test_a_source_that_runs_dry_begins_again_within_the_epochs_and_what_is_held_out_stays_out():
    def blend(max_epochs):
        sources = [numbered([LENGTH] * 20), numbered([LENGTH] * 1000, first=5000)]
        return split_all(sources, [0.5, 0.5], 60 * LENGTH, max_epochs=max_epochs)

    with pytest.raises(DataError, match=r"the blend is too short: source 0 ran dry; it has 160 tokens, of which 136 "):
        blend(1)
    parts, counts = blend(2)
    ids = parts.train.input_ids.flatten().tolist()
    repeated = [number for number in range(20) if ids.count(number) == 2 * LENGTH]
    held_out = {*documents_in(parts.validation), *documents_in(parts.calibration)}
    assert set(repeated).isdisjoint(held_out)
    assert 30 - 17 <= len(repeated) <= 31 - 17
    assert counts[0].train_tokens in {30 * LENGTH, 31 * LENGTH}
    assert max(ids.count(number) for number in range(5000, 6000)) == LENGTH


def test_the_message_of_a_dry_source_says_its_share_and_what_to_do():
    sources = [numbered([LENGTH] * 20), numbered([LENGTH] * 1000, first=5000)]
    with pytest.raises(
        DataError, match=r"its share of 480 training tokens is 240; add text to it, lower its weight or"
    ):
        split_all(sources, [0.5, 0.5], 60 * LENGTH)


def test_without_a_budget_a_blend_ends_where_its_first_source_does():
    sources = [numbered([LENGTH] * 100), numbered([LENGTH] * 1000, first=5000)]
    parts, counts = split_all(sources, [0.5, 0.5], None, max_epochs=3)
    assert share_of_first(parts.train) == pytest.approx(0.5, abs=0.01)
    assert counts[0].found_tokens == 100 * LENGTH
    assert 190 - 6 <= parts.train.num_sequences <= 200 - 6


def test_a_source_that_holds_nothing_is_named():
    with pytest.raises(DataError, match=r"source 1 ran dry; it has 0 tokens"):
        split_all([numbered([LENGTH] * 100), iter(())], [0.5, 0.5], 80)


def test_text_is_read_from_every_source_and_a_document_of_two_sources_counts_once(tmp_path):
    texts = [f"Document {number} is one of those that are read." for number in range(60)]
    both = [datasets.Dataset.from_dict({"text": part}) for part in (texts[:40], texts[20:])]
    chosen = TextSettings(sequence_length=16, validation_samples=2, calibration_samples=4)
    blend = [{"path": data, "weight": 0.5} for data in both]
    tokenizer = tiny_tokenizer()
    reader = TextReader(tokenizer, len(tokenizer), chosen)
    counts = split_text(blend, reader, 0, None, tmp_path / "tokens")
    lengths = [len(tokenizer(text)["input_ids"]) + 1 for text in texts]
    assert sum(count.found_tokens for count in counts) == sum(lengths)
    train = TokenSplits.load(tmp_path / "tokens").train
    again = split_text(blend, reader, 0, None, tmp_path / "again")
    assert again == counts
    assert TokenSplits.load(tmp_path / "again").train.fingerprint == train.fingerprint
    split_text(blend, reader, 1, None, tmp_path / "other")
    assert not torch.equal(TokenSplits.load(tmp_path / "other").train.input_ids[:2], train.input_ids[:2])


def test_a_call_that_ends_early_leaves_nothing(tmp_path):
    chosen = TextSettings(sequence_length=LENGTH, validation_samples=2, calibration_samples=4)
    sources, reader = [TextSource("a", None, 1.0, chosen)], TextReader(NumberTokenizer(), NUM_TOKENS, chosen)
    with pytest.raises(DataError, match="too short"):
        split_documents(sources, [numbered([LENGTH])], reader, 80, tmp_path / "tokens")
    assert list(tmp_path.iterdir()) == []


def test_tokens_that_the_disk_cannot_hold_are_refused_before_anything_is_read(tmp_path):
    def unread():
        raise AssertionError
        yield

    chosen = TextSettings(sequence_length=LENGTH)
    sources, reader = [TextSource("a", None, 1.0, chosen)], TextReader(NumberTokenizer(), NUM_TOKENS, chosen)
    with pytest.raises(DiskSpaceError, match="the text in tokens needs 6.* GB"):
        split_documents(sources, [unread()], reader, 10**15, tmp_path / "tokens")


def test_progress_counts_tokens_up_to_what_may_be_read(tmp_path):
    told = []
    chosen = TextSettings(sequence_length=LENGTH, validation_samples=2, calibration_samples=4)
    sources, reader = [TextSource("a", None, 1.0, chosen)], TextReader(NumberTokenizer(), NUM_TOKENS, chosen)
    split_documents(
        sources,
        [numbered([LENGTH] * 50)],
        reader,
        80,
        tmp_path / "tokens",
        progress=lambda *now: told.append(now),
    )
    assert told == [(LENGTH * n, (2 + 4 + 11) * LENGTH) for n in range(1, 18)]


def test_an_unset_budget_reads_at_most_a_billion_tokens(monkeypatch):
    monkeypatch.setattr(token_log, "ONE_PASS_TOKENS", 20 * LENGTH)
    assert split([LENGTH] * 1000, None).train.num_sequences == 21
