import os
from contextlib import contextmanager
from tempfile import TemporaryFile
from types import SimpleNamespace

import psutil
import pytest
import torch

from minitron_nas.errors import DiskSpaceError
from minitron_nas.importance import hidden_states as module
from minitron_nas.importance.hidden_states import HiddenStates

SHAPE = (5, 3, 4)


def with_memory(monkeypatch, num_bytes):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=num_bytes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("available", [0, 1 << 30])
def test_what_is_written_is_read_and_the_rest_stays(tmp_path, monkeypatch, available, dtype):
    with_memory(monkeypatch, available)
    values = torch.randn(SHAPE).to(dtype)
    with HiddenStates.make(SHAPE, dtype, tmp_path) as states:
        states.write(torch.tensor([3, 4]), values[3:])
        assert torch.equal(states.read(torch.tensor([0, 1, 2])), torch.zeros(3, 3, 4, dtype=dtype))
        states.write(torch.tensor([0, 1, 2]), values[:3])
        assert torch.equal(states.read(torch.arange(5)), values)
        states.write(torch.tensor([1, 2]), -values[1:3])
        assert torch.equal(states.read(torch.tensor([2, 3])), torch.stack([-values[2], values[3]]))
        assert states.read(torch.tensor([2])).dtype == states.dtype == dtype


@pytest.mark.parametrize(("available", "in_file"), [(8 * 240 - 1, True), (8 * 240, False)])
def test_states_that_take_more_than_an_eighth_of_the_memory_go_to_a_file(tmp_path, monkeypatch, available, in_file):
    with_memory(monkeypatch, available)
    folders = []

    @contextmanager
    def recorded(**place):
        folders.append(place["dir"])
        with TemporaryFile(**place) as file:
            yield file

    monkeypatch.setattr(module, "TemporaryFile", recorded)
    with HiddenStates.make(SHAPE, torch.float32, tmp_path):
        assert list(tmp_path.iterdir()) == []
    assert folders == [tmp_path] * in_file


def test_the_disk_counts_a_file_as_taken_before_anything_is_written():
    with TemporaryFile() as file:
        HiddenStates((4, 1024, 64), torch.float32, file)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 4 * 1024 * 64 * 4


def test_the_share_of_the_memory_may_be_smaller(tmp_path, monkeypatch):
    with_memory(monkeypatch, 16 * 240)
    with HiddenStates.make(SHAPE, torch.float32, tmp_path, 1 / 16) as states:
        assert states._file is None
    with HiddenStates.make(SHAPE, torch.float32, tmp_path, 1 / 17) as states:
        assert states._file is not None


def test_a_disk_that_is_too_small_is_told_of_before_anything_is_written(tmp_path, monkeypatch):
    with_memory(monkeypatch, 0)
    message = r"hidden states of the text needs .*B in .* free some space"
    with pytest.raises(DiskSpaceError, match=message), HiddenStates.make((1, 1, 1 << 60), torch.float32, tmp_path):
        pass
