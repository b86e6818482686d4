"""Which device and number format this process computes with."""

import ctypes
import gc
import os

import torch

from minitron_nas.memory import available_memory, set_malloc, total_memory


def pick_device() -> torch.device:
    """Return the accelerator of this process (its local rank's), or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def announce_device() -> None:
    """Tell DeepSpeed, which transformers imports, that there is no accelerator, so that it need not search and warn."""
    if pick_device().type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device computes it natively, else float32.

    Args:
        device: Of this process.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype, weights: torch.dtype) -> torch.autocast:
    """Return what lets float32 weights be computed with in another type; weights of other types stay as they are.

    Args:
        device: Where they lie.
        dtype: To compute in.
        weights: Their type.
    """
    return torch.autocast(device.type, dtype=dtype, enabled=weights == torch.float32 != dtype)


def available_bytes(device: torch.device) -> int:
    """Return how much of a device's memory is free to take; for the CPU, of main memory, within this process' limits.

    Args:
        device: Of this process.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()


def total_bytes(device: torch.device) -> int:
    """Return a device's memory in bytes; for the CPU, main memory.

    Args:
        device: Of this process.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return total_memory()


def release_memory() -> None:
    """Give memory of models that are no longer referenced back to the device and the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_memory()


def hold_memory(device: torch.device) -> None:
    """Keep what is freed from now on for what is allocated next, in a process that trains on the CPU.

    Args:
        device: What trains.
    """
    if device.type != "cpu":
        return
    # glibc gives blocks from 128 KB to 32 MB up back to the system at once and takes new pages for the next
    # ones: a fifth of a training step of SmolLM2 on the CPU. `trim_memory` still gives back what is free.
    trim_threshold, mmap_max = -1, -4  # malloc.h names them M_TRIM_THRESHOLD and M_MMAP_MAX
    set_malloc(mmap_max, 0)
    set_malloc(trim_threshold, 2**31 - 1)


def trim_memory() -> None:
    """Give main memory that has been freed back to the system."""
    # A Ray worker runs each job in a new thread, and glibc keeps what each thread has freed for itself:
    # three trials of SmolLM2 in one process peaked at 5.5 GB without this and at 2.9 GB with it. A sweep over
    # layers of an 8B model grew by 25 MB a layer without this, and not at all with it.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
