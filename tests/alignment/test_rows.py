import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from minitron_nas.alignment.rows import read_answers, read_preferences
from minitron_nas.errors import DataError
from minitron_nas.text.settings import TextSettings

TEXT = TextSettings()
ASKED, TOLD, OTHER = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "assistant", "content": "b"},
)
TURNS = [ASKED, TOLD]


def lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(data: Any, settings: TextSettings = TEXT) -> list[tuple[list[Any], int]]:
    return [(list(answer.conversation.messages), answer.first) for answer in read_answers(data, settings)]


@pytest.mark.parametrize(
    ("row", "first"),
    [
        ({"messages": TURNS}, 0),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, 0),
        ({"messages": json.dumps(TURNS)}, 0),
        ({"prompt": "q", "completion": "a"}, 1),
        ({"prompt": [ASKED], "completion": [TOLD]}, 1),
        ({"text": "something else", "messages": TURNS}, 0),
    ],
)
def test_every_form_of_a_conversation_is_the_same_turns(tmp_path: Path, row: dict[str, Any], first: int) -> None:
    assert answers(lines(tmp_path / "a.jsonl", [row])) == [(TURNS, first)]


def test_tables_of_all_kinds_are_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"messages": [TURNS, TURNS]})
    frame.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps([{"messages": TURNS}, {"messages": TURNS}]))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((json.dumps({"messages": TURNS}) + "\n").encode() * 2))
    table = datasets.Dataset.from_list([{"messages": TURNS}] * 2)
    table.save_to_disk(str(tmp_path / "saved"))
    for data in (tmp_path / "a.parquet", tmp_path / "a.json", str(tmp_path / "a.jsonl.gz"), tmp_path / "saved", table):
        assert answers(data) == [(TURNS, 0), (TURNS, 0)], data


def test_a_named_column_is_the_one_that_is_read(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", [{"messages": [ASKED, OTHER], "mine": TURNS, "as json": json.dumps(TURNS)}])
    assert answers(file, TextSettings(column="mine")) == [(TURNS, 0)]
    assert answers(file, TextSettings(column="as json")) == [(TURNS, 0)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"messages": TURNS}, {"messages": "hello"}], r"a\.jsonl, row 2: column 'messages' holds text \('hello'\)"),
        ([{"messages": TURNS}, {"messages": [{"content": "x"}]}], r"a\.jsonl, row 2: .* is no message"),
        ([{"messages": TURNS}, {"messages": 3}], r"a\.jsonl, row 2: .*neither text nor a conversation"),
        ([{"prompt": "q", "completion": ""}], r"a\.jsonl, row 1: column 'completion' is empty"),
        ([{"prompt": "q"}], r"a\.jsonl has neither messages, or conversations, or prompt and completion, but prompt"),
        (
            [{"text": "q"}],
            r"has neither messages.* but text; name the column of conversations with --set text\.column=",
        ),
    ],
)
def test_rows_that_are_no_conversations_are_refused_by_name(tmp_path: Path, rows: list[Any], words: str) -> None:
    file = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=words):
        answers(file)


def test_what_holds_no_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("once upon a time")
    with pytest.raises(DataError, match=r"a\.txt is plain text, which holds no conversations"):
        answers(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"no file matches .*none\.jsonl"):
        answers(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [ASKED], "chosen": [TOLD], "rejected": [OTHER]},
        {"prompt": "q", "chosen": [ASKED, TOLD], "rejected": [ASKED, OTHER]},
        {"chosen": [ASKED, TOLD], "rejected": [ASKED, OTHER]},
    ],
)
def test_every_form_of_a_preference_is_the_same_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    (pair,) = read_preferences(lines(tmp_path / "p.jsonl", [row]), TEXT)
    assert list(pair.chosen.conversation.messages) == [ASKED, TOLD]
    assert list(pair.rejected.conversation.messages) == [ASKED, OTHER]
    assert pair.chosen.first == pair.rejected.first == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "row 1: column 'rejected' is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "row 1: chosen and rejected are the same"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "row 1: there is no prompt"),
        (
            {"prompt": "q", "chosen": "a"},
            r"neither chosen and rejected and prompt, or chosen and rejected, but [a-z, ]+; rename the columns$",
        ),
    ],
)
def test_rows_that_prefer_nothing_are_refused_by_name(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(read_preferences(lines(tmp_path / "p.jsonl", [row]), TEXT))


@pytest.mark.parametrize(
    ("row", "empty"),
    [
        ({"prompt": "q"}, "chosen"),
        ({"prompt": "q", "chosen": "a"}, "rejected"),
        ({"prompt": "q", "rejected": "b"}, "chosen"),
        ({"prompt": "q", "chosen": " ", "rejected": "b"}, "chosen"),
    ],
)
def test_a_row_among_others_that_lacks_an_answer_is_refused_by_file_and_row(
    tmp_path: Path, row: dict[str, Any], empty: str
) -> None:
    whole = [{"prompt": f"q {number}", "chosen": "a", "rejected": "b"} for number in range(3)]
    file = lines(tmp_path / "p.jsonl", [*whole[:2], row, whole[2]])
    with pytest.raises(
        DataError, match=rf"p\.jsonl, row 3: column '{empty}' is empty; fill it in, or take the row out"
    ):
        list(read_preferences(file, TEXT))


def test_a_row_that_says_nothing_is_passed_over(tmp_path: Path) -> None:
    whole = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert len(list(read_preferences(lines(tmp_path / "p.jsonl", [dict.fromkeys(whole), whole]), TEXT))) == 1


def test_both_answers_begin_with_as_many_turns_as_they_share(tmp_path: Path) -> None:
    long, longer = [ASKED, TOLD, ASKED, TOLD], [ASKED, TOLD, ASKED, OTHER]
    (pair,) = read_preferences(lines(tmp_path / "p.jsonl", [{"chosen": long, "rejected": longer}]), TEXT)
    assert pair.chosen.first == 3
    (pair,) = read_preferences(lines(tmp_path / "p.jsonl", [{"chosen": [ASKED, TOLD], "rejected": longer}]), TEXT)
    assert pair.chosen.first == 1  # of the shorter one an answer is left
