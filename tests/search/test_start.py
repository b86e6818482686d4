"""What finalists and students begin as: the better of two repairs, measured on the held-out text."""

import pytest
import torch

from minitron_nas.distillation.loss.validation import validate
from minitron_nas.models.loading import load_for_training
from minitron_nas.pruning.refit import refit_in_sequence
from minitron_nas.pruning.student import build_student
from minitron_nas.search import start as module
from minitron_nas.search.start import MeasuredStart, Starts
from minitron_nas.storage.sealed import read_sealed, write_sealed
from minitron_nas.text.tokens import PackedTokens


def target_of(arena):
    return arena.candidate(intermediate_size=20).architecture


def written(arena, folder, calibration="the arena's"):
    text = arena.calibration if calibration == "the arena's" else calibration
    return Starts(arena.prepared, arena.files, folder, text).write(target_of(arena))


def stored(arena, folder):
    return load_for_training(folder / target_of(arena).id)


def losses_of(arena, student):
    held_out = arena.files.held_out()
    return validate(student, held_out.tokens, held_out.signal)


def kl_of(arena, student):
    return losses_of(arena, student).kl_nats


def start_of(arena, way, student, other_kl_nats=None):
    losses = losses_of(arena, student)
    return MeasuredStart(way, losses.kl_nats, other_kl_nats, losses.loss_nats, list(losses.sequence_kl_nats))


def same_weights(student, other):
    return all(torch.equal(weight, other.state_dict()[name]) for name, weight in student.state_dict().items())


def test_both_ways_are_measured_and_the_better_is_written(arena, tmp_path):
    start = written(arena, tmp_path / "start")
    text = PackedTokens.load(arena.calibration)
    repaired = refit_in_sequence(arena.prepared, target_of(arena), text, tmp_path / "repaired")
    ways = {
        "one_pass": build_student(arena.prepared, target_of(arena), torch.float32),
        "in_sequence": build_student(arena.prepared, target_of(arena), torch.float32, repaired),
    }
    kls = {way: kl_of(arena, student) for way, student in ways.items()}
    better, worse = sorted(kls, key=kls.__getitem__)
    assert start == start_of(arena, better, ways[better], kls[worse])
    kept = stored(arena, tmp_path / "start")
    assert same_weights(kept, ways[better])
    assert not same_weights(kept, ways[worse])
    assert [path.name for path in tmp_path.iterdir() if path.name != "repaired"] == ["start"]


@pytest.mark.parametrize(("damaged", "expected"), [("one_pass", "in_sequence"), ("in_sequence", "one_pass")])
def test_whichever_way_is_worse_is_not_the_start(arena, tmp_path, monkeypatch, damaged, expected):
    def build(prepared, target, dtype, repaired=None):
        student = build_student(prepared, target, dtype, repaired or {})
        if ("in_sequence" if repaired is not None else "one_pass") == damaged:
            student.lm_head.weight.data *= -30.0
        return student

    monkeypatch.setattr(module, "build_student", build)
    start = written(arena, tmp_path / "start")
    assert (start.repair, start.kl_nats < start.other_kl_nats) == (expected, True)
    assert kl_of(arena, stored(arena, tmp_path / "start")) == start.kl_nats


def test_a_way_whose_kl_is_no_number_loses(arena, tmp_path, monkeypatch):
    def build(prepared, target, dtype, repaired=None):
        student = build_student(prepared, target, dtype, repaired or {})
        if repaired is None:
            student.lm_head.weight.data.fill_(float("nan"))
        return student

    monkeypatch.setattr(module, "build_student", build)
    assert written(arena, tmp_path / "start").repair == "in_sequence"


def test_without_text_nothing_is_repaired(arena, tmp_path):
    start = written(arena, tmp_path / "start", calibration=None)
    plain = build_student(arena.prepared, target_of(arena), torch.float32)
    assert start == start_of(arena, "none", plain)
    assert same_weights(stored(arena, tmp_path / "start"), plain)


def test_a_family_that_cannot_be_repaired_in_sequence_is_repaired_in_one_pass(arena, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "why_never_in_sequence", lambda layout, source: "its norms stand elsewhere")
    start = written(arena, tmp_path / "start")
    assert (start.repair, start.other_kl_nats, start.choice) == ("one_pass", None, None)


def test_a_start_that_is_there_is_not_made_again(arena, tmp_path, monkeypatch):
    start = written(arena, tmp_path / "start")
    monkeypatch.setattr(module, "build_student", None)
    assert written(arena, tmp_path / "start") == start


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "start.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_start_that_has_changed_since_is_made_again(arena, tmp_path, monkeypatch, name, damage):
    folder = tmp_path / "start"
    start, file = written(arena, folder), folder / target_of(arena).id / name
    content = file.read_bytes()
    match damage:
        case "changed":
            file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        case "cut":
            file.write_bytes(content[: len(content) // 2])
        case "gone":
            file.unlink()
    assert written(arena, folder) == start
    assert name == "start.json" or file.read_bytes() == content
    monkeypatch.setattr(module, "build_student", None)
    assert written(arena, folder) == start


def test_a_start_of_which_an_earlier_version_measured_less_is_made_again(arena, tmp_path):
    start, about = written(arena, tmp_path), tmp_path / target_of(arena).id / "start.json"
    sealed = read_sealed(about)
    for name in ("loss_nats", "sequence_kl_nats"):
        del sealed["measured"][name]
    write_sealed(about, sealed)
    assert written(arena, tmp_path) == start


def test_a_kill_leaves_no_half_start(arena, tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "refit_in_sequence", killed)
        with pytest.raises(KeyboardInterrupt):
            written(arena, tmp_path / "start")
    assert not (tmp_path / "start" / target_of(arena).id).exists()
    assert written(arena, tmp_path / "start") == written(arena, tmp_path / "other")


def test_the_choice_is_told_with_both_numbers():
    assert MeasuredStart("one_pass", 0.388, 0.399).choice == (
        "repaired in one pass, where it begins with a KL of 0.388 nats (0.399 layer after layer)"
    )
    assert MeasuredStart("in_sequence", 0.4, 0.5).choice.startswith("repaired layer after layer, where it begins")
