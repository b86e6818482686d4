"""Where a tokenizer puts BOS, and what splitting a text makes of it."""

import pytest

from minitron_nas.testing import tiny_tokenizer
from minitron_nas.text.conversation import Conversation
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import TextSource
from minitron_nas.text.splits import TextReader, TokenSplits, split_documents
from minitron_nas.text.tokenization import leading_bos, tokenize

WORDS = "The river runs to the sea, and nobody has counted its stones. "


def test_a_tokenizer_that_begins_a_text_with_bos_says_so(bos_tokenizer):
    assert leading_bos(bos_tokenizer) == bos_tokenizer.bos_token_id
    assert tokenize([], bos_tokenizer, 320).bos == bos_tokenizer.bos_token_id
    assert leading_bos(tiny_tokenizer()) is None
    assert tokenize([], tiny_tokenizer(), 320).bos is None


def test_a_text_that_brings_its_bos_along_has_one(bos_tokenizer):
    bos = bos_tokenizer.bos_token_id
    plain, marked = tokenize(["abc", f"{bos_tokenizer.bos_token}abc"], bos_tokenizer, 320)
    assert plain.tolist() == marked.tolist()
    assert plain.tolist().count(bos) == 1


def test_a_conversation_begins_as_its_template_says(bos_tokenizer):
    (ids,) = tokenize([Conversation([{"role": "user", "content": "Hi"}])], bos_tokenizer, 320)
    assert bos_tokenizer.decode(ids) == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.parametrize(("bos", "begins"), [("sequence", True), ("document", False)])
def test_every_sequence_of_every_part_begins_with_bos_unless_the_settings_say_no(tmp_path, bos_tokenizer, bos, begins):
    settings = TextSettings(sequence_length=32, calibration_samples=4, validation_samples=4, bos=bos)
    documents = [f"{number}. {WORDS * 8}" for number in range(40)]
    source = TextSource("text", None, 1.0, settings)
    split_documents([source], [documents], TextReader(bos_tokenizer, 320, settings), 32 * 20, tmp_path / "tokens")
    parts = TokenSplits.load(tmp_path / "tokens", verify=True)
    first = [part.input_ids[:, 0].long() == bos_tokenizer.bos_token_id for part in (parts.train, parts.validation)]
    assert all(bool(each.all()) for each in first) is begins
    assert (parts.train.added is not None) is begins
    assert parts.train.num_tokens >= 32 * 20
