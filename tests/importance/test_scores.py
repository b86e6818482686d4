import dataclasses
import json

import pytest
import torch
from safetensors import safe_open

from minitron_nas.errors import CheckpointError, ScoresError
from minitron_nas.importance import scores as module
from minitron_nas.importance.scores import ImportanceScores, about_scores, descending, load_calibration
from minitron_nas.storage.schemas import SCORES
from minitron_nas.storage.tables import read_rows
from minitron_nas.text.tokens import PackedTokens

SCORED = ImportanceScores(
    hidden=torch.tensor([0.5, 3.0, 1.0]),
    neurons=torch.tensor([[4.0, 1.0], [2.0, 2.5]]),
    heads=torch.tensor([[1.0, 2.0], [4.0, 3.0]]),
    kv_groups=torch.tensor([[7.0], [8.0]]),
    experts=torch.zeros(2, 0),
    layers=torch.tensor([0.25, 0.75]),
)


def test_scores_come_back_to_the_bit(tmp_path):
    SCORED.save(tmp_path / "scores", {})
    loaded = ImportanceScores.load(tmp_path / "scores")
    for field in dataclasses.fields(ImportanceScores):
        assert torch.equal(getattr(loaded, field.name), getattr(SCORED, field.name))


def test_what_the_scores_are_about_stands_in_the_file(tmp_path):
    SCORED.save(tmp_path / "scores", {"source": "abc", "num_samples": "12"})
    with safe_open(tmp_path / "scores" / "scores.safetensors", framework="pt") as file:
        told = json.loads(file.metadata()["about"])
    assert {"source": "abc", "num_samples": "12"}.items() <= told.items()
    assert about_scores(tmp_path / "scores") == {"source": "abc", "num_samples": "12"}


@pytest.mark.parametrize("file", ["scores.safetensors", "calibration.safetensors"])
def test_no_byte_of_a_folder_of_scores_changes_in_silence(tmp_path, file):
    text = PackedTokens(torch.arange(40).view(2, 20), torch.arange(20).expand(2, 20).contiguous())
    SCORED.save(tmp_path / "scores", {"source": "abc"}, text)
    path = tmp_path / "scores" / file
    written = path.read_bytes()
    for place in range(8, len(written), 5):
        path.write_bytes(written[:place] + bytes([written[place] ^ 0x10]) + written[place + 1 :])
        try:
            scores, read = ImportanceScores.load(tmp_path / "scores", "abc"), load_calibration(tmp_path / "scores")
        except (ScoresError, CheckpointError):
            continue
        assert torch.equal(scores.hidden, SCORED.hidden), place
        assert torch.equal(scores.neurons, SCORED.neurons), place
        assert read.fingerprint == text.fingerprint, place
    path.write_bytes(written)
    assert torch.equal(ImportanceScores.load(tmp_path / "scores", "abc").hidden, SCORED.hidden)
    for place in (len(written) - 1, len(written) - 30):
        path.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        with pytest.raises((ScoresError, CheckpointError), match=r"has changed since|is not what was written there"):
            ImportanceScores.load(tmp_path / "scores", "abc"), load_calibration(tmp_path / "scores")


def test_the_table_ranks_every_unit_within_its_axis_and_layer(tmp_path):
    SCORED.save(tmp_path / "scores", {})
    rows = read_rows(tmp_path / "scores", SCORES)
    assert [(row["axis"], row["layer"], row["index"], row["score"], row["rank"]) for row in rows] == [
        ("hidden", None, 0, 0.5, 2),
        ("hidden", None, 1, 3.0, 0),
        ("hidden", None, 2, 1.0, 1),
        ("neurons", 0, 0, 4.0, 0),
        ("neurons", 0, 1, 1.0, 1),
        ("neurons", 1, 0, 2.0, 1),
        ("neurons", 1, 1, 2.5, 0),
        ("heads", 0, 0, 1.0, 1),
        ("heads", 0, 1, 2.0, 0),
        ("heads", 1, 0, 4.0, 0),
        ("heads", 1, 1, 3.0, 1),
        ("kv_groups", 0, 0, 7.0, 0),
        ("kv_groups", 1, 0, 8.0, 0),
        ("layers", None, 0, 0.25, 1),
        ("layers", None, 1, 0.75, 0),
    ]


def test_experts_rank_their_own_neurons(tmp_path):
    experts = dataclasses.replace(
        SCORED, neurons=torch.tensor([[[1.0, 2.0], [4.0, 3.0]]]), experts=torch.tensor([[5.0, 6.0]])
    )
    experts.save(tmp_path / "scores", {})
    rows = [row for row in read_rows(tmp_path / "scores", SCORES) if row["axis"] in {"neurons", "experts"}]
    assert [(row["axis"], row["layer"], row["expert"], row["index"], row["rank"]) for row in rows] == [
        ("neurons", 0, 0, 0, 1),
        ("neurons", 0, 0, 1, 0),
        ("neurons", 0, 1, 0, 0),
        ("neurons", 0, 1, 1, 1),
        ("experts", 0, None, 0, 1),
        ("experts", 0, None, 1, 0),
    ]


def test_another_models_scores_and_a_folder_without_any_are_refused(tmp_path):
    SCORED.save(tmp_path / "scores", {"source": "abc"})
    assert torch.equal(ImportanceScores.load(tmp_path / "scores", "abc").hidden, SCORED.hidden)
    with pytest.raises(ScoresError, match=r"holds the scores of model abc, not of this one \(def\); score this one"):
        ImportanceScores.load(tmp_path / "scores", "def")
    with pytest.raises(ScoresError, match=r"holds no scores\.safetensors"):
        ImportanceScores.load(tmp_path)


def test_ranks_follow_a_cycle_of_three_in_the_right_direction(tmp_path):
    # Sorted, the indices are 2, 0, 1: the inverse permutation differs from the permutation itself.
    cycle = dataclasses.replace(SCORED, hidden=torch.tensor([2.0, 1.0, 3.0]))
    cycle.save(tmp_path / "scores", {})
    ranks = [row["rank"] for row in read_rows(tmp_path / "scores", SCORES) if row["axis"] == "hidden"]
    assert ranks == [1, 2, 0]


def test_scores_that_are_cut_short_are_refused(tmp_path):
    SCORED.save(tmp_path, {})
    file = tmp_path / "scores.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ScoresError, match=r"scores\.safetensors is cut short or of another version \(.*score again"):
        ImportanceScores.load(tmp_path)


def test_equal_scores_keep_their_order():
    assert descending(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0])).tolist() == [1, 3, 0, 2, 4]
    assert descending(torch.zeros(5000)).tolist() == list(range(5000))


def test_the_same_scores_are_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        SCORED.save(tmp_path / name, {"source": "abc"})
    for file in ("scores.safetensors", "scores.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_save_that_fails_leaves_the_old_scores_and_nothing_else(tmp_path, monkeypatch):
    folder = tmp_path / "scores"
    SCORED.save(folder, {})

    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "write_rows", full_disk)
    with pytest.raises(OSError, match="No space left"):
        dataclasses.replace(SCORED, hidden=torch.zeros(3)).save(folder, {})
    assert torch.equal(ImportanceScores.load(folder).hidden, SCORED.hidden)
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores"]


def test_the_text_of_the_scores_is_kept_beside_them_and_missed_where_it_is_not(tmp_path):
    text = PackedTokens(torch.tensor([[5, 6, 7]]), torch.tensor([[0, 1, 0]]))
    SCORED.save(tmp_path / "new", {}, text)
    assert load_calibration(tmp_path / "new").fingerprint == text.fingerprint
    SCORED.save(tmp_path / "old", {})
    message = (
        r"holds no calibration\.safetensors, the text .*; give text with --data too, or score again with `minitron"
    )
    with pytest.raises(ScoresError, match=message):
        load_calibration(tmp_path / "old")
