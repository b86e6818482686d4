import gc
import platform
import subprocess
import sys
import weakref
from types import SimpleNamespace

import psutil
import pytest
import torch

from minitron_nas.execution import device as module
from minitron_nas.execution.device import available_bytes, compute_dtype, pick_device, release_memory

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpus(monkeypatch):
    def pretend(count, bf16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bf16
        )

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return pretend


def test_without_an_accelerator_it_is_the_cpu(gpus):
    gpus(0)
    assert pick_device() == CPU


@pytest.mark.parametrize(("rank", "index"), [(None, 0), ("0", 0), ("1", 1), ("3", 1)])
def test_every_local_rank_has_its_own_accelerator(gpus, monkeypatch, rank, index):
    gpus(2)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert pick_device() == torch.device("cuda", index)


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_an_accelerator_computes_in_bfloat16_where_it_can(gpus, bf16, dtype):
    gpus(1, bf16)
    assert compute_dtype(GPU) == dtype


@pytest.mark.parametrize(
    ("supported", "capability", "dtype"),
    [
        (True, "AVX512", torch.bfloat16),
        (True, "AVX2", torch.float32),
        (False, "AVX512", torch.float32),
        (False, "DEFAULT", torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_where_that_is_native(monkeypatch, supported, capability, dtype):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert compute_dtype(CPU) == dtype


def test_free_memory_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 + device.index, 100))
    assert available_bytes(CPU) == 1000
    assert available_bytes(torch.device("cuda", 1)) == 11


def test_this_machine_computes_in_what_it_says():
    device = pick_device()
    ones = torch.ones(2, 2, device=device, dtype=compute_dtype(device))
    assert (ones @ ones).tolist() == [[2, 2], [2, 2]]


def test_memory_of_what_refers_to_itself_is_given_back(gpus, monkeypatch):
    emptied = []
    gpus(1)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))

    class Model:
        pass

    gc.disable()
    try:
        model = Model()
        model.itself, gone = model, weakref.ref(model)
        del model
        assert gone() is not None
        release_memory()
        assert gone() is None
    finally:
        gc.enable()
    assert emptied == [True]


def test_without_an_accelerator_there_is_no_cache_to_empty(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr(module.torch.cuda, "empty_cache", lambda: pytest.fail("there is no accelerator"))
    release_memory()


REUSE = """
import resource, sys
import psutil, torch
from minitron_nas.execution.device import hold_memory, trim_memory
if sys.argv[1] == "hold":
    hold_memory(torch.device("cpu"))
def step():
    for megabytes in (10, 20, 33, 50, 70, 100):
        torch.ones(megabytes * 2**18)
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
held = psutil.Process().memory_info().rss
trim_memory()
print(faults, (held - psutil.Process().memory_info().rss) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is told to hold memory")
def test_held_memory_is_used_again_without_new_pages_and_can_be_given_back():
    faults, given_back = {}, {}
    for name in ("hold", "plain"):
        command = [sys.executable, "-c", REUSE, name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[name], given_back[name] = map(int, done.stdout.split())
    assert faults["plain"] > 10 * faults["hold"]
    assert given_back["hold"] > 80
