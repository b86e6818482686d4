from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from minitron_nas.errors import DataError
from minitron_nas.text.held_out import in_turns, means_by_text, read_held_out
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import TextSource
from minitron_nas.text.splits import TextReader
from minitron_nas.text.tokens import PackedTokens


def tokens(first: int, num_sequences: int, added: torch.Tensor | None = None) -> PackedTokens:
    ids = torch.arange(num_sequences * 4).view(num_sequences, 4) + first
    return PackedTokens(ids, torch.arange(4).expand(num_sequences, 4), added=added)


def test_sequences_of_every_text_take_turns_so_that_the_first_are_the_first_of_each() -> None:
    whole = in_turns([tokens(0, 3), tokens(100, 3)])
    assert whole.input_ids[:, 0].tolist() == [0, 100, 4, 104, 8, 108]
    assert whole.first(4).input_ids[:, 0].tolist() == [0, 100, 4, 104]
    assert whole.position_ids.tolist() == [[0, 1, 2, 3]] * 6


def test_an_added_bos_stays_with_its_sequence(tmp_path: Path) -> None:
    whole = in_turns([tokens(0, 2), tokens(100, 2, torch.tensor([True, False]))])
    whole.save(tmp_path / "held_out.safetensors")
    found = PackedTokens.load(tmp_path / "held_out.safetensors")
    assert found.num_counted().tolist() == [4, 3, 4, 4]


def test_a_mean_is_taken_over_the_tokens_of_its_own_text() -> None:
    sums, counts = [8.0, 3.0, 4.0, 9.0], torch.tensor([4, 3, 4, 3, 4, 3])
    assert means_by_text(sums, counts, 2) == [12 / 8, 12 / 6]
    assert means_by_text(sums[:2], counts, 2) == [2.0, 1.0]


def test_the_mean_over_all_texts_is_that_of_one_stream() -> None:
    sums, counts = torch.rand(6).tolist(), torch.full((6,), 5)
    assert sum(means_by_text(sums, counts, 3)) / 3 == pytest.approx(sum(sums) / 30)


@pytest.fixture
def reader(trained_teacher: Path) -> TextReader:
    return TextReader(AutoTokenizer.from_pretrained(trained_teacher), 320, TextSettings(sequence_length=16))


def source(folder: Path, text: str) -> TextSource:
    (folder / "far.txt").write_text(text)
    return TextSource("evaluation.texts.far", folder / "far.txt", 1.0, TextSettings())


def test_text_is_read_until_it_fills_as_many_sequences_as_are_wanted(reader: TextReader, tmp_path: Path) -> None:
    far = source(tmp_path, "\n\n".join(f"Paragraph {number}. " + "word " * 900 for number in range(9)))
    found = read_held_out(far, reader, 3, seed=0)
    assert found.input_ids.shape == (3, 16)
    again = read_held_out(far, reader, 3, seed=0)
    assert torch.equal(found.input_ids, again.input_ids)


def test_text_that_is_too_short_is_refused_with_what_it_has(reader: TextReader, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"evaluation\.texts\.far is too short: .* fill 1 sequences, and 3 are needed"):
        read_held_out(source(tmp_path, "a few words and not one more than fit"), reader, 3, seed=0)
