"""Where a model comes from: what is written comes back, and what is not there is None or empty."""

import json

import pytest

from minitron_nas.errors import RunFolderError
from minitron_nas.storage.lineage import LINEAGE, Lineage, Origin, Proof, read_lineage

STUDENT = Lineage(
    teacher=Origin("owner/teacher", "abc"),
    source=Origin("110M", "def"),
    size="94M",
    role="student",
    architecture={"hidden_size": 8},
    source_architecture={"hidden_size": 12},
    kept_layers=[0, 2],
    start={"channels": "channels are rotated", "repair": "nothing is repaired", "merge_heads": False},
    tokens_trained=0,
    learning_rate=1e-4,
    seed=0,
    versions={"torch": "2.6"},
)


def test_a_lineage_comes_back_with_its_proof(tmp_path):
    STUDENT.write(tmp_path, Proof(1e-6, 1e-3))
    found = read_lineage(tmp_path)
    assert found.proof == Proof(1e-6, 1e-3)
    assert found.proof.holds
    found.write(tmp_path, None)
    assert read_lineage(tmp_path) == STUDENT


@pytest.mark.parametrize("difference", [None, "large", [1.0]])
def test_a_proof_without_a_number_is_no_lineage(tmp_path, difference):
    STUDENT.write(tmp_path, Proof(1e-6, 1e-3))
    content = json.loads((tmp_path / LINEAGE).read_text())
    content["proof"]["max_abs_difference"] = difference
    (tmp_path / LINEAGE).write_text(json.dumps(content))
    with pytest.raises(RunFolderError, match=r"is no lineage .*; distill this student again"):
        read_lineage(tmp_path)


def test_what_does_not_apply_is_not_written_but_zeros_are(tmp_path):
    STUDENT.write(tmp_path, None)
    content = json.loads((tmp_path / LINEAGE).read_text())
    assert "correction" not in content
    assert (content["seed"], content["tokens_trained"], content["proof"]) == (0, 0, None)


def test_no_place_of_this_machine_is_written_into_it(tmp_path):
    about = {"data": "/home/ada/chats.jsonl", "validation": "s3://secret/held_out.jsonl"}
    told = Lineage(Origin("/home/ada/models/big", "abc"), scores=[{"path": "/home/ada/texts"}], alignment=about)
    told.write(tmp_path, None)
    written = (tmp_path / LINEAGE).read_text()
    assert "ada" not in written
    assert "secret" not in written
    assert read_lineage(tmp_path).teacher == Origin("big", "abc")
    assert read_lineage(tmp_path).alignment == {"data": "chats.jsonl", "validation": "held_out.jsonl"}


def test_a_folder_without_one_has_an_empty_one(tmp_path):
    assert read_lineage(tmp_path) == Lineage()


def test_a_lineage_of_an_earlier_version_is_read(tmp_path):
    content = {"teacher": {"source": "owner/teacher", "fingerprint": "abc"}, "architecture": {}, "told": 3}
    (tmp_path / LINEAGE).write_text(json.dumps(content))
    assert read_lineage(tmp_path).teacher == Origin("owner/teacher", "abc")


@pytest.mark.parametrize("content", ["{", "[]", '{"teacher": 3}', '{"proof": {"tolerance": 1}}', '"a"'])
def test_a_damaged_lineage_is_refused_by_name(tmp_path, content):
    (tmp_path / LINEAGE).write_text(content)
    with pytest.raises(RunFolderError, match=r"lineage\.json is n.*; distill this student again"):
        read_lineage(tmp_path)
