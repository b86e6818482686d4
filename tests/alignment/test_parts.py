from dataclasses import dataclass

import numpy as np
import pytest
import torch

from minitron_nas.alignment.parts import pack_turns, read_all, split_rows
from minitron_nas.errors import DataError
from minitron_nas.text.tokens import IGNORE_LABEL
from minitron_nas.text.turns import TurnTokens


@dataclass(frozen=True)
class Row:
    digest: int


def turns(ids: list[int], written: list[int], num_turns: int = 1) -> TurnTokens:
    return TurnTokens(np.array(ids), np.array(written, dtype=bool), num_turns, num_turns, frozenset())


def rows(*numbers: int) -> list[Row]:
    return [Row(number) for number in numbers]


def test_a_tenth_is_held_out_and_no_row_is_in_both_parts() -> None:
    parts = split_rows(rows(*range(50), *range(50)), None, 128, seed=0)
    train, held_out = ({row.digest for row in part} for part in (parts.train, parts.held_out))
    assert (len(parts.train), len(parts.held_out)) == (45, 5)
    assert train | held_out == set(range(50))
    assert train.isdisjoint(held_out)
    assert parts == split_rows(rows(*range(50)), None, 128, seed=0)
    assert parts != split_rows(rows(*range(50)), None, 128, seed=1)
    assert len(split_rows(rows(*range(50)), None, 3, seed=0).held_out) == 3


def test_other_rows_that_are_held_out_are_not_trained_on() -> None:
    parts = split_rows(rows(1, 2, 3), rows(3, 4), 128, seed=0)
    assert {row.digest for row in parts.train} == {1, 2}
    assert {row.digest for row in parts.held_out} == {3, 4}


@pytest.mark.parametrize(("own", "others"), [(rows(1, 1), None), ([], None), (rows(1), rows(1)), (rows(1), [])])
def test_too_few_rows_are_refused(own: list[Row], others: list[Row] | None) -> None:
    with pytest.raises(DataError, match="at least one of each is needed"):
        split_rows(own, others, 128, seed=0)


def test_conversations_are_packed_whole_and_padding_counts_in_no_loss() -> None:
    packed = pack_turns([turns([1, 2, 3], [0, 0, 1]), turns([4, 5, 6, 7], [0, 1, 1, 0]), turns([8, 9], [0, 1])], 5)
    assert packed.input_ids.tolist() == [[1, 2, 3, 8, 9], [4, 5, 6, 7, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    none = IGNORE_LABEL
    assert packed.labels().tolist() == [[none, 3, none, 9, none], [5, 6, none, none, none]]
    assert packed.num_counted().tolist() == [2, 2]
    assert packed.counted().sum() == 4


def test_what_does_not_fit_is_cut_and_what_is_left_without_an_answer_is_told() -> None:
    read = read_all([turns([1, 2, 3, 4], [0, 1, 1, 1]), turns([5, 6, 7, 8], [0, 0, 0, 1]), turns([9, 9], [0, 1], 2)], 3)
    assert [turn.ids.tolist() for turn in read.turns] == [[1, 2, 3], [9, 9]]
    assert (read.num_cut, read.num_left_out, read.num_tokens) == (2, 1, 3)
    assert [line.partition(":")[0] for line in read.about("train")] == ["train", "train"]
    with pytest.raises(DataError, match="no answer of 1 conversations lies within text.sequence_length=3; raise it"):
        read_all([turns([5, 6, 7, 8], [0, 0, 0, 1])], 3)
    with pytest.raises(DataError, match="the chat template writes no answer"):
        read_all([TurnTokens(np.array([1, 2]), np.zeros(2, dtype=bool), 1, 0, frozenset())], 3)


def test_padding_is_a_document_of_its_own() -> None:
    packed = pack_turns([turns([1, 2], [0, 1])], 4)
    assert packed.position_ids.tolist() == [[0, 1, 0, 1]]
    assert torch.equal(packed.taught.bool(), torch.tensor([[True, False, False, False]]))
