"""Written once: killed, resumed, contested, short of disk, of something else. The same for every kind of cache."""

import fcntl
import os
import shutil
import threading
from collections import namedtuple

import numpy as np
import pytest
import torch

from minitron_nas.distillation.signals import folder as signal_folder
from minitron_nas.distillation.signals.folder import Share, SignalFolder, SignalPlace, read_about
from minitron_nas.distillation.signals.hidden_cache import HiddenCache, write_hidden_cache
from minitron_nas.distillation.signals.top_k_cache import TopKCache, top_k_bytes, write_top_k_cache
from minitron_nas.errors import CacheError, DiskSpaceError
from minitron_nas.storage.sealed import read_sealed, write_sealed
from minitron_nas.testing import tiny_config, tiny_model
from minitron_nas.text.packing import pack

CPU = torch.device("cpu")
RECORD_BYTES = {"hidden_cache": 16 * 48 * 4, "top_k": 16 * top_k_bytes(9)}
NUM_SEQUENCES = 7


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_config("llama"))


@pytest.fixture(params=["hidden_cache", "top_k"])
def kind(request, monkeypatch):
    """Two sequences in a shard."""
    monkeypatch.setattr(signal_folder, "_SHARD_BYTES", 2 * RECORD_BYTES[request.param])
    return request.param


def some_tokens(num_sequences=NUM_SEQUENCES, seed=7):
    generator = np.random.default_rng(seed)
    pieces = [generator.integers(3, 320, size=generator.integers(3, 24)) for _ in range(2 * num_sequences + 4)]
    return pack(pieces, 16).first(num_sequences)


def write(kind, model, folder, tokens=None, teacher="teacher", **options):
    place, options = SignalPlace(folder, teacher, tokens or some_tokens()), {"batch_sequences": 1, **options}
    if kind == "top_k":
        write_top_k_cache(model, place, 9, **options)
    else:
        write_hidden_cache(model, place, **options)


def read(kind, folder, tokens=None, teacher="teacher"):
    tokens = tokens or some_tokens()
    cache = (TopKCache if kind == "top_k" else HiddenCache)(SignalPlace(folder, teacher, tokens), CPU)
    targets = cache.targets(torch.arange(tokens.num_sequences), tokens)
    return targets.log_probs if kind == "top_k" else targets.hidden


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def written_share(kind, model, folder, share):
    """Write a share and return what was told meanwhile."""
    seen = []
    write(kind, model, folder, share=share, progress=lambda done, total: seen.append((done, total)))
    return seen


def without_locks(files):
    """Files without the locks beside them."""
    return {name: value for name, value in files.items() if not name.startswith(".lock")}


def dying_after(num_batches):
    def progress(done, total):
        if done == num_batches * 16:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("num_batches", [1, 2, 3, 6, 7])
def test_a_killed_writer_goes_on_at_the_first_shard_that_is_not_whole_to_the_same_bytes(
    tmp_path, model, kind, num_batches
):
    write(kind, model, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write(kind, model, tmp_path / "killed", progress=dying_after(num_batches))
    whole_shards = (num_batches - 1) // 2
    assert len(list((tmp_path / "killed").glob("*.shard"))) == whole_shards
    with pytest.raises(
        CacheError, match=rf"is not whole: {4 - whole_shards} of 4 shards are missing or cut short, the"
    ):
        read(kind, tmp_path / "killed")
    # What SIGKILL leaves of a shard.
    (tmp_path / "killed" / f".{whole_shards:05d}.shard.partial").write_bytes(b"half")
    seen = []
    write(kind, model, tmp_path / "killed", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(sequence * 16, 7 * 16) for sequence in range(2 * whole_shards + 1, 8)]
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_what_is_whole_is_not_written_again(tmp_path, model, kind):
    write(kind, model, tmp_path)
    stamps = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.s*")}
    write(kind, model, tmp_path, progress=lambda done, total: pytest.fail("the teacher spoke"))
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.s*")} == stamps


@pytest.mark.parametrize("damage", ["flipped", "cut short", "gone"])
def test_a_damaged_shard_is_named_and_when_it_is_deleted_written_again_alone(tmp_path, model, kind, damage):
    write(kind, model, tmp_path)
    good, shard = content(tmp_path), tmp_path / "00002.shard"
    bad = bytearray(shard.read_bytes())
    bad[RECORD_BYTES[kind] + 5] ^= 128
    shard.write_bytes(bad if damage == "flipped" else bad[:-1])
    if damage == "gone":
        shard.unlink()
    message = r"1 of 4 shards are missing or cut short, the first of them 00002\.shard; delete what is cut short and"
    if damage == "flipped":
        message = r"record 5 in .*00002\.shard is not what was written there; check the disk, delete the file and rep"
    with pytest.raises(CacheError, match=message):
        read(kind, tmp_path)
    shard.unlink(missing_ok=True)
    seen = []
    write(kind, model, tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == [6 * 16, 7 * 16]
    assert content(tmp_path) == good


def test_a_change_of_what_the_cache_is_said_to_be_is_found(tmp_path, model, kind):
    write(kind, model, tmp_path)
    about = tmp_path / "about.json"
    write_sealed(about, {**read_sealed(about), "batch_sequences": 2})
    with pytest.raises(CacheError, match="record 0 in"):
        read(kind, tmp_path)


@pytest.mark.parametrize("damage", ["a digit", "a name", "a brace", "no text", "cut short", "empty", "gone"])
def test_a_cache_whose_description_is_damaged_is_none_and_is_written_again(tmp_path, model, kind, damage):
    write(kind, model, tmp_path)
    good, about = content(tmp_path), tmp_path / "about.json"
    text = about.read_bytes()
    changes = {
        "a digit": text.replace(b'"num_sequences": 7', b'"num_sequences": 8'),
        "a name": text.replace(b"record_bytes", b"record_bytez"),
        "a brace": b"[" + text[1:],
        "no text": b"\xff" + text[1:],
        "cut short": text[:-20],
        "empty": b"",
    }
    assert len({text, *changes.values()}) == len(changes) + 1
    about.unlink()
    if damage != "gone":
        about.write_bytes(changes[damage])
    assert read_about(tmp_path) is None
    with pytest.raises(CacheError, match="holds no cache of what a teacher says; repeat the command that writes it"):
        read(kind, tmp_path)
    write(kind, model, tmp_path)
    assert content(tmp_path) == good


def test_a_cache_of_another_teacher_other_tokens_or_another_kind_is_refused(tmp_path, model, kind):
    write(kind, model, tmp_path)
    mine, others = some_tokens(), some_tokens(seed=8)
    with pytest.raises(CacheError, match=r"is a cache of teacher teacher, not other; delete it or name another folder"):
        read(kind, tmp_path, teacher="other")
    with pytest.raises(CacheError, match=rf"is a cache of tokens {mine.fingerprint}, not {others.fingerprint}; delete"):
        read(kind, tmp_path, others)
    another = {"hidden_cache": "top_k", "top_k": "hidden_cache"}[kind]
    kinds = {"hidden_cache": HiddenCache.kind, "top_k": TopKCache.kind}
    with pytest.raises(
        CacheError, match=rf"is a cache of kind {kinds[kind]}, not {kinds[another]}; delete it or name another folder"
    ):
        read(another, tmp_path)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"shape": [1, 2]}'])
def test_a_folder_that_holds_no_cache_is_refused(tmp_path, kind, text):
    if text is not None:
        (tmp_path / "about.json").write_text(text)
    with pytest.raises(CacheError, match="holds no cache of what a teacher says; repeat the command that writes it"):
        read(kind, tmp_path)


def test_a_cache_of_something_else_gives_way(tmp_path, model, kind):
    write(kind, model, tmp_path / "cache", some_tokens(9, seed=8))
    (tmp_path / "cache" / "hidden.bin").write_bytes(b"an older format's")
    write(kind, model, tmp_path / "cache")
    write(kind, model, tmp_path / "new")
    assert content(tmp_path / "cache") == content(tmp_path / "new")


def test_its_files_exist_if_and_only_if_a_cache_is_whole(tmp_path, model, kind):
    def files():
        return SignalFolder(tmp_path, read_about(tmp_path)).files

    with pytest.raises(KeyboardInterrupt):
        write(kind, model, tmp_path, progress=dying_after(4))
    assert not all(file.exists() for file in files())
    write(kind, model, tmp_path)
    assert set(files()) == {file for file in tmp_path.iterdir() if not file.name.startswith(".lock")}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_shares_of_several_writers_are_together_what_one_writes(tmp_path, model, kind, count):
    write(kind, model, tmp_path / "one")
    told = [written_share(kind, model, tmp_path / "many", Share(number, count)) for number in reversed(range(count))]
    assert all([done for done, _ in seen] == [16 * (place + 1) for place in range(len(seen))] for seen in told)
    ends = [seen[-1] for seen in told if seen]
    assert sum(done for done, _ in ends) == 7 * 16 == sum(total for _, total in ends)
    assert without_locks(content(tmp_path / "many")) == without_locks(content(tmp_path / "one"))


def test_writers_of_different_shares_do_not_wait_for_each_other(tmp_path, model, kind):
    """The second writes its share from beginning to end while the first has just written a sequence."""

    def meanwhile(done, total):
        if done == 16:
            other = threading.Thread(target=write, args=(kind, model, tmp_path), kwargs={"share": Share(1, 2)})
            other.start()
            other.join(timeout=60)
            assert not other.is_alive()

    write(kind, model, tmp_path, share=Share(0, 2), progress=meanwhile)
    assert torch.isfinite(read(kind, tmp_path)).all()


def test_a_writer_of_another_cache_waits_for_all_shares(tmp_path, model, kind):
    other = threading.Thread(target=write, args=(kind, model, tmp_path, some_tokens(9, seed=8)))

    def meanwhile(done, total):
        if done == 16:
            other.start()
            other.join(timeout=0.5)
            assert other.is_alive()

    write(kind, model, tmp_path, share=Share(0, 2), progress=meanwhile)
    other.join(timeout=60)
    assert torch.isfinite(read(kind, tmp_path, some_tokens(9, seed=8))).all()


def test_a_shard_holds_whole_batches_however_large(tmp_path, model, kind):
    write(kind, model, tmp_path, batch_sequences=3)
    sizes = [file.stat().st_size // (RECORD_BYTES[kind] + 16) for file in sorted(tmp_path.glob("*.shard"))]
    assert sizes == [3, 3, 1]


def test_a_disk_that_cannot_hold_the_cache_is_refused_before_the_teacher_runs(tmp_path, model, kind, monkeypatch):
    head = {"hidden_cache": 320 * 48 * 4, "top_k": 0}[kind]
    needed = 7 * (RECORD_BYTES[kind] + 16) + head
    give_disk(monkeypatch, needed - 1)
    with pytest.raises(DiskSpaceError, match=r"the cache of the teacher's .* needs [\d.]+ [kM]B in .*cache"):
        write(kind, model, tmp_path / "cache", progress=lambda done, total: pytest.fail("the teacher ran"))
    assert os.listdir(tmp_path / "cache") == [".lock"]
    give_disk(monkeypatch, needed)
    write(kind, model, tmp_path / "cache")


def test_what_is_there_already_needs_no_room(tmp_path, model, kind, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        write(kind, model, tmp_path, progress=dying_after(6))
    give_disk(monkeypatch, 3 * (RECORD_BYTES[kind] + 16))
    write(kind, model, tmp_path)


def give_disk(monkeypatch, free):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, free))


def test_a_second_writer_waits_and_finds_what_the_first_has_written(tmp_path, model, kind):
    write(kind, model, tmp_path / "expected")
    batches = {0: 0, 1: 0}
    first_is_inside, second_has_begun = threading.Event(), threading.Event()

    def counting(number):
        def progress(done, total):
            batches[number] += 1
            if number == 0:
                first_is_inside.set()
                assert second_has_begun.wait(10)

        return progress

    def second():
        assert first_is_inside.wait(10)
        second_has_begun.set()
        write(kind, model, tmp_path / "cache", progress=counting(1))

    thread = threading.Thread(target=second)
    thread.start()
    write(kind, model, tmp_path / "cache", progress=counting(0))
    thread.join()
    assert batches == {0: 7, 1: 0}
    assert content(tmp_path / "cache") == content(tmp_path / "expected")


def test_the_lock_of_a_writer_is_held_against_other_processes_and_given_back(tmp_path, model, kind):
    states = []

    def progress(done, total):
        with open(tmp_path / ".lock", "w") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        states.append("held")

    write(kind, model, tmp_path, progress=progress)
    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert states == ["held"] * 7


def test_reading_takes_no_lock_and_touches_only_the_shards_asked_for(tmp_path, model, kind):
    write(kind, model, tmp_path)
    cache = (TopKCache if kind == "top_k" else HiddenCache)(SignalPlace(tmp_path, "teacher", some_tokens()), CPU)
    for name in ("00000.shard", "00002.shard", "00003.shard"):
        (tmp_path / name).unlink()
    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cache.targets(torch.tensor([3, 2]), some_tokens())
