import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_nas.storage.ledger import Entry, Ledger, fingerprint

SCORE = Entry("teacher score", "aaaa", {"path": "importance/teacher", "count": 3}, 1.23456)
SORT = Entry("teacher sort", "bbbb", None, 2.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def test_a_new_ledger_holds_nothing_and_writes_nothing(path):
    assert Ledger(path).find("teacher score", "aaaa") is None
    assert not path.exists()


def test_what_was_recorded_is_found_by_stage_and_fingerprint(path):
    ledger = Ledger(path)
    ledger.append(SCORE)
    assert ledger.find("teacher score", "aaaa") == SCORE
    assert ledger.find("teacher score", "cccc") is None
    assert ledger.find("teacher sort", "aaaa") is None


def test_another_process_finds_it_too_with_milliseconds(path):
    Ledger(path).append(SCORE)
    found = Ledger(path).find("teacher score", "aaaa")
    assert found == Entry("teacher score", "aaaa", {"path": "importance/teacher", "count": 3}, 1.235)


def test_a_line_is_json_that_says_when(path):
    Ledger(path).append(SORT)
    line = json.loads(path.read_text())
    assert line.pop("finished").endswith("+00:00")
    assert line == {"stage": "teacher sort", "fingerprint": "bbbb", "result": None, "seconds": 2.0}


def test_a_stage_that_ran_again_has_its_last_result(path):
    ledger = Ledger(path)
    ledger.append(SCORE)
    ledger.append(Entry("teacher score", "aaaa", "again", 1.0))
    assert ledger.find("teacher score", "aaaa").result == "again"
    assert Ledger(path).find("teacher score", "aaaa").result == "again"
    assert len(path.read_text().splitlines()) == 2


def test_after_every_possible_cut_of_the_last_line_the_first_stays_and_new_ones_are_added(path):
    Ledger(path).append(SCORE)
    whole = len(path.read_bytes())
    Ledger(path).append(SORT)
    both = path.read_bytes()
    for length in range(whole, len(both) - 1):
        path.write_bytes(both[:length])
        cut = Ledger(path)
        assert cut.find("teacher score", "aaaa") is not None
        assert cut.find("teacher sort", "bbbb") is None
        cut.append(SORT)
        assert Ledger(path).find("teacher score", "aaaa") is not None
        assert Ledger(path).find("teacher sort", "bbbb") == SORT


def test_a_whole_last_line_without_its_end_counts(path):
    Ledger(path).append(SORT)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    ledger = Ledger(path)
    assert ledger.find("teacher sort", "bbbb") == SORT
    ledger.append(SCORE)
    assert Ledger(path).find("teacher sort", "bbbb") == SORT
    assert Ledger(path).find("teacher score", "aaaa") is not None


def test_words_in_any_script_and_line_breaks_come_back(path):
    result = {"name": "dünn 日本\u2028\x85\nnext", "loss": float("inf")}
    Ledger(path).append(Entry("stage", "f", result, 0.0))
    assert Ledger(path).find("stage", "f").result == result


def test_a_fingerprint_is_sixteen_digits_that_never_change():
    assert fingerprint({"size": 8, "name": "llama"}) == "3f35dea978cea02e"


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})


@settings(max_examples=30)
@given(*[st.dictionaries(st.sampled_from("abc"), st.integers() | st.text() | st.none() | st.booleans())] * 2)
def test_different_values_have_different_fingerprints(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )
