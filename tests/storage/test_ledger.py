import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_nas.errors import RunFolderError
from minitron_nas.storage.ledger import Entry, Ledger, fingerprint
from minitron_nas.storage.outputs import Output

FILES = (Output("importance/teacher/scores.safetensors", 120, 17, "ab"), Output("signals/t/00000.shard", 9, 18, None))
SCORE = Entry("teacher score", "aaaa", {"path": "importance/teacher", "count": 3}, 1.23456, FILES, FILES[:1])
SORT = Entry("teacher sort", "bbbb", None, 2.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def test_a_new_ledger_holds_nothing_and_writes_nothing(path):
    assert Ledger(path).latest("teacher score") is None
    assert Ledger(path).entries() == []
    assert not path.exists()


def test_what_was_recorded_is_found_by_stage_by_another_process_too_with_milliseconds(path):
    ledger = Ledger(path)
    ledger.append(SCORE)
    assert ledger.latest("teacher score") == SCORE
    assert ledger.latest("teacher sort") is None
    assert Ledger(path).latest("teacher score") == replace(SCORE, seconds=1.235)


def test_a_line_is_json_that_says_when_and_has_a_checksum(path):
    Ledger(path).append(SORT)
    line = json.loads(path.read_text())
    assert line.pop("finished").endswith("+00:00")
    assert len(line.pop("xxh3")) == 32
    assert line == {
        "stage": "teacher sort", "fingerprint": "bbbb", "result": None, "seconds": 2.0, "outputs": [], "rows": [],
    }  # fmt: skip


def test_the_time_that_went_into_other_stages_is_kept_and_decides_nothing(path):
    shared = replace(SORT, of_others={"teacher score": 1.23456})
    Ledger(path).append(shared)
    assert Ledger(path).latest("teacher sort").of_others == {"teacher score": 1.235}
    assert shared.digest == SORT.digest


def test_another_process_finds_when_a_stage_was_finished(path):
    Ledger(path).append(SORT)
    assert Ledger(path).latest("teacher sort").finished == json.loads(path.read_text())["finished"]


def test_only_the_latest_of_a_stage_counts_and_it_keeps_its_place(path):
    ledger = Ledger(path)
    for entry in (SCORE, SORT, replace(SCORE, fingerprint="cccc", result="again")):
        ledger.append(entry)
    for found in (ledger, Ledger(path)):
        assert (found.latest("teacher score").fingerprint, found.latest("teacher score").result) == ("cccc", "again")
        assert [entry.stage for entry in found.entries()] == ["teacher score", "teacher sort"]
    assert len(path.read_text().splitlines()) == 3


def test_after_every_possible_cut_of_the_last_line_the_first_stays_and_new_ones_are_added(path):
    Ledger(path).append(SCORE)
    whole = len(path.read_bytes())
    Ledger(path).append(SORT)
    both = path.read_bytes()
    for length in range(whole, len(both) - 1):
        path.write_bytes(both[:length])
        cut = Ledger(path)
        assert cut.latest("teacher score") is not None
        assert cut.latest("teacher sort") is None
        cut.append(SORT)
        assert Ledger(path).latest("teacher score") is not None
        assert Ledger(path).latest("teacher sort") == SORT


def test_a_line_in_which_any_byte_has_changed_counts_as_none(path):
    Ledger(path).append(SORT)
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        found = Ledger(path).latest("teacher sort")
        assert found is None or found == SORT  # but for white space, and for the time, which decides nothing


def test_a_whole_last_line_without_its_end_counts(path):
    Ledger(path).append(SORT)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    ledger = Ledger(path)
    assert ledger.latest("teacher sort") == SORT
    ledger.append(SCORE)
    assert Ledger(path).latest("teacher sort") == SORT
    assert Ledger(path).latest("teacher score") is not None


def test_a_ledger_that_cannot_be_read_is_named(path):
    path.mkdir()
    with pytest.raises(RunFolderError, match=r"ledger\.jsonl cannot be read .*restore it"):
        Ledger(path)


def test_words_in_any_script_and_line_breaks_come_back(path):
    result = {"name": "dünn 日本\u2028\x85\nnext", "loss": float("inf")}
    Ledger(path).append(Entry("stage", "f", result, 0.0))
    assert Ledger(path).latest("stage").result == result


def test_a_digest_changes_with_what_others_read_and_not_with_when_it_was_written():
    other = Output("importance/teacher/scores.safetensors", 120, 99, "ab")
    assert replace(SCORE, outputs=(other, FILES[1]), seconds=9.0, fingerprint="dddd").digest == SCORE.digest
    changed = replace(other, checksum="ac")
    assert replace(SCORE, outputs=(changed, FILES[1])).digest != SCORE.digest
    assert replace(SCORE, result=None).digest != SCORE.digest


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
