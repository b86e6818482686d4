"""Tokenizers are compared by what their ids mean; how many rows a model has beside them does not matter."""

import pytest

from minitron_nas.errors import CheckpointError
from minitron_nas.testing import tiny_tokenizer
from minitron_nas.text.vocabulary import Vocabulary

IDS = {"a": 0, "b": 1, "c": 2}


def named(name, ids):
    return Vocabulary(name, ids)


def test_the_same_ids_in_any_order_are_accepted():
    named("small", IDS).require_same(named("large", dict(reversed(IDS.items()))))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"a": 0, "b": 2, "c": 1}, r"\(3 tokens\) have different tokenizers: 'b' is id 1 in small and id 2 in large; "),
        ({"a": 0, "b": 1}, r"\(2 tokens\) have different tokenizers: 'c' is id 2 in small and unknown to large; "),
        ({**IDS, "d": 3}, r"\(4 tokens\) have different tokenizers: 'd' is unknown to small and id 3 in large; "),
    ],
)
def test_a_token_that_means_something_else_is_named_with_both_models_and_what_to_do(ids, message):
    expected = r"the student small \(3 tokens\) and the teacher large " + message + "logits can be compared only where "
    with pytest.raises(CheckpointError, match=f"{expected}.* choose a teacher of the student's own family, or prune"):
        named("small", IDS).require_same(named("large", ids))


def test_a_folders_ids_are_those_of_its_tokenizer(tmp_path):
    tokenizer = tiny_tokenizer(300)
    tokenizer.save_pretrained(tmp_path)
    assert Vocabulary.of(tmp_path, "mine") == Vocabulary("mine", tokenizer.get_vocab())
