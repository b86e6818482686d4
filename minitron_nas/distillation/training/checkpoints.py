"""Checkpoints of a training: what is in them, which are whole, and which belong to what is being trained.

A checkpoint holds whole tensors under the parameters' names, whichever engine has written it, so a
training goes on under another engine and on another number of processes.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from minitron_nas.execution.deepspeed import (
    MOMENTS,
    full_moment,
    full_weight,
    set_moment,
    set_weight,
)
from minitron_nas.storage.atomic import write_text
from minitron_nas.storage.weights import safetensors_header

STUDENT = "student"
"""What the model is called among the modules that are trained."""

_MARK = "complete"
_WEIGHTS, _OPTIMIZER = "model.safetensors", "optimizer.safetensors"
_FLOAT32_BYTES = 4


def save_state(checkpoint: Path, module: nn.Module, optimizer: Any, writes: bool) -> None:
    """Save trained parameters in float32 and Adam's moments; all processes must call this.

    Tensors are gathered, written and freed one after the other.

    Args:
        checkpoint: A folder.
        module: What is trained.
        optimizer: AdamW, or the optimizer that ZeRO wraps around it.
        writes: Whether this process writes; one does.
    """
    trained = _trained(module)
    save_weights(checkpoint / _WEIGHTS, module, writes)
    _write(
        checkpoint / _OPTIMIZER,
        (
            (f"{moment}.{name}", _shape(parameter), lambda p=parameter, m=moment: full_moment(p, optimizer, m))  # type: ignore[misc]
            for moment in MOMENTS
            for name, parameter in trained
        ),
        writes,
    )


def save_weights(file: Path, module: nn.Module, writes: bool) -> None:
    """Save trained parameters in float32; all processes must call this.

    Args:
        file: A safetensors file.
        module: What is trained.
        writes: Whether this process writes; one does.
    """
    tensors = ((name, _shape(parameter), lambda p=parameter: full_weight(p)) for name, parameter in _trained(module))
    _write(file, tensors, writes)


def load_state(checkpoint: Path, module: nn.Module, optimizer: Any) -> None:
    """Set parameters and Adam's moments to what `save_state` has saved; all processes must call this.

    `begin_moments` must have been called.

    Args:
        checkpoint: Its folder.
        module: What is trained.
        optimizer: AdamW, or the optimizer that ZeRO wraps around it.
    """
    load_weights(checkpoint, module)
    with safe_open(checkpoint / _OPTIMIZER, framework="pt") as file:
        for name, parameter in _trained(module):
            for moment in MOMENTS:
                set_moment(parameter, optimizer, moment, file.get_tensor(f"{moment}.{name}"))


def load_weights(folder: Path, module: nn.Module) -> None:
    """Set parameters to what `save_weights` has saved as a folder's `model.safetensors`."""
    with safe_open(folder / _WEIGHTS, framework="pt") as file:
        for name, parameter in _trained(module):
            set_weight(parameter, file.get_tensor(name))


def copy_weights(checkpoint: Path, module: str, file: Path) -> None:
    """Save what a checkpoint holds of one of the modules that are trained, as `save_weights` saves that module.

    Args:
        checkpoint: Its folder.
        module: The module's name.
        file: A safetensors file.
    """
    prefix = f"{module}."
    with safe_open(checkpoint / _WEIGHTS, framework="pt") as stored:
        tensors = [
            (name.removeprefix(prefix), tuple(stored.get_slice(name).get_shape()), partial(stored.get_tensor, name))
            for name in stored.offset_keys()
            if name.startswith(prefix)
        ]
        _write(file, tensors, writes=True)


def mark_whole(checkpoint: Path, identity: str) -> None:
    """Mark a checkpoint as whole once it is on the disk, and remove all others.

    A killed process leaves a checkpoint without the mark.

    Args:
        checkpoint: A folder named `checkpoint-STEP`.
        identity: A hash of what is being trained, on what and how.
    """
    os.sync()
    write_text(checkpoint / _MARK, identity)
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            shutil.rmtree(other, ignore_errors=True)


def last_whole(folder: Path, identity: str | None = None) -> Path | None:
    """Return the latest checkpoint in a folder that is marked as whole, of whatever is trained or for an `identity`."""
    marks = folder.glob(f"checkpoint-*/{_MARK}")
    whole = (mark.parent for mark in marks if identity is None or mark.read_text() == identity)
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters in the module's order; a tied one has one name."""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def _shape(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _write(file: Path, tensors: Iterable[tuple[str, tuple[int, ...], Callable[[], Tensor]]], writes: bool) -> None:
    """Write a safetensors file of float32 tensors, each of which all processes get when its turn comes."""
    entries = list(tensors)
    sizes = [(name, "F32", shape, _FLOAT32_BYTES * torch.Size(shape).numel()) for name, shape, _ in entries]
    if not writes:
        for _, _, get in entries:
            get()
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as handle:
        handle.write(safetensors_header(sizes))
        for _, _, get in entries:
            handle.write(memoryview(get().detach().float().cpu().contiguous().numpy()).cast("B"))  # type: ignore[arg-type]
