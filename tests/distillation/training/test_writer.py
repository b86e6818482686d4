"""Checkpoints that are written while training goes on: whole or absent, and as things were when they were begun."""

import errno
import os
import threading

import pytest
import torch
from transformers import TrainingArguments

from minitron_nas.distillation.training import checkpoints, writer
from minitron_nas.distillation.training.checkpoints import last_whole, load_weights
from minitron_nas.distillation.training.writer import CheckpointWriter
from minitron_nas.errors import MachineError, TrainingProcessError
from minitron_nas.execution.deepspeed import begin_moments


class Disk:
    """Tensors go through it when it is open; it tells which threads have written."""

    def __init__(self, monkeypatch):
        self.open, self.threads, self.fault = threading.Event(), [], None
        write = checkpoints.write_tensors

        def slowly(file, pieces):
            self.threads.append(threading.current_thread())
            assert self.open.wait(20)
            if self.fault is not None:
                raise self.fault
            write(file, pieces)

        monkeypatch.setattr(checkpoints, "write_tensors", slowly)


@pytest.fixture
def disk(monkeypatch):
    monkeypatch.setattr(writer, "SMALL_BYTES", 0)
    return Disk(monkeypatch)


class Training:
    """One matrix of ones, and what writes its checkpoints."""

    def __init__(self, folder):
        self.module = torch.nn.Linear(4, 4, bias=False)
        self.set(1.0)
        self.optimizer = torch.optim.AdamW(self.module.parameters())
        begin_moments(self.optimizer, 0)
        self.folder, self.whole = folder, []
        arguments = TrainingArguments(output_dir=str(folder), use_cpu=True)
        self.writer = CheckpointWriter(folder, "run", arguments, lambda: self.whole.append(self.last))

    @torch.no_grad()
    def set(self, value):
        self.module.weight.fill_(value)

    @property
    def last(self):
        found = last_whole(self.folder, "run")
        return None if found is None else found.name

    def save(self, step, at_once=False):
        self.writer.save(
            step, self.module, self.optimizer, lambda folder: (folder / "trainer_state.json").write_text("{}"), at_once
        )

    def wait(self):
        """Go on with steps until nothing is written."""
        while self.writer.is_writing:
            pass

    def saved(self):
        module = torch.nn.Linear(4, 4, bias=False)
        load_weights(last_whole(self.folder, "run"), module)
        return module.weight.unique().tolist()


@pytest.fixture
def training(tmp_path, disk):
    started = Training(tmp_path)
    yield started
    disk.open.set()
    started.writer.close()


def test_training_goes_on_while_a_checkpoint_is_written_as_things_were(training, disk):
    training.save(5)
    training.set(2.0)
    assert training.writer.is_writing
    assert (training.last, training.whole) == (None, [])
    disk.open.set()
    training.writer.finish()
    assert (training.last, training.whole) == ("checkpoint-5", ["checkpoint-5"])
    assert training.saved() == [1.0]
    assert threading.main_thread() not in disk.threads


def test_it_becomes_whole_between_steps_when_all_is_written(training, disk):
    training.save(5)
    disk.open.set()
    for _ in range(2):  # the tensors, then the mark
        assert training.whole == []
        training.writer._work.exception(20)
        training.writer.go_on()
    assert training.whole == ["checkpoint-5"]
    training.writer.go_on()
    assert training.whole == ["checkpoint-5"]


def test_the_next_checkpoint_waits_for_the_one_before_which_it_replaces(training, disk):
    training.save(5)
    threading.Timer(0.2, disk.open.set).start()
    training.set(2.0)
    training.save(6)
    assert training.whole == ["checkpoint-5"]
    training.writer.finish()
    assert training.whole == ["checkpoint-5", "checkpoint-6"]
    assert [path.name for path in training.folder.iterdir()] == ["checkpoint-6"]
    assert training.saved() == [2.0]


@pytest.mark.parametrize("why", ["at once", "small", "no memory"])
def test_it_is_written_here_where_a_copy_does_not_pay_or_has_no_room(training, disk, monkeypatch, why):
    disk.open.set()
    if why == "small":
        monkeypatch.setattr(writer, "SMALL_BYTES", 1000)
    if why == "no memory":
        monkeypatch.setenv("MINITRON_NAS_MEMORY", "1MB")
    training.save(5, at_once=why == "at once")
    assert set(disk.threads) == {threading.main_thread()}
    if why != "no memory":  # which other processes may have
        assert training.whole == ["checkpoint-5"]
    training.writer.finish()
    assert training.whole == ["checkpoint-5"]


@pytest.mark.parametrize(
    ("fault", "expected", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), MachineError, "full|No space"),
        (ValueError("odd"), TrainingProcessError, r"could not write its part of a checkpoint: ValueError\('odd'\)"),
    ],
)
def test_what_could_not_be_written_is_raised_in_training_and_the_one_before_stays(
    training, disk, fault, expected, words
):
    disk.open.set()
    training.save(5, at_once=True)
    disk.fault = fault
    training.save(6)
    with pytest.raises(expected, match=words):
        training.writer.finish()
    assert training.last == "checkpoint-5"
    training.writer.finish()
    assert training.whole == ["checkpoint-5"]


def test_a_training_that_ends_early_brings_its_checkpoint_to_an_end(training, disk):
    training.save(5)
    disk.open.set()
    training.writer.close()
    assert training.last == "checkpoint-5"


def test_what_another_number_of_processes_has_left_half_written_is_gone(training, disk):
    disk.open.set()
    left = training.folder / "checkpoint-5" / "model-1-of-2.checksums.json"
    left.parent.mkdir()
    left.write_text("{}")
    training.save(5, at_once=True)
    assert not left.exists()
    assert training.saved() == [1.0]
