"""Checkpoints of a training: what is in them, which are whole, and which belong to what is being trained.

A checkpoint holds whole tensors under the parameters' names, whichever engine has written it, so a
training goes on under another engine and on another number of processes:

    model.safetensors, optimizer.safetensors             the tensors
    model.checksums.json, optimizer.checksums.json       a checksum of each, verified whenever one is read
    trainer_state.json                                   the curve so far
    complete                                             what is trained, and checksums of the other small files

The last is written last. Where it is not there, or a small file is not what it says, there is no checkpoint.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.trainer import TRAINER_STATE_NAME
from xxhash import xxh3_128, xxh3_128_hexdigest

from minitron_nas.errors import CheckpointError
from minitron_nas.execution.deepspeed import (
    MOMENTS,
    ZeroOptimizer,
    full_moment,
    full_weight,
    set_moment,
    set_weight,
)
from minitron_nas.storage.sealed import read_sealed, write_sealed
from minitron_nas.storage.weights import safetensors_header

STUDENT = "student"
"""What the model is called among the modules that are trained."""

WEIGHTS = "model.safetensors"
"""The file of the trained weights in a checkpoint."""

MARK = "complete"
_CHECKSUMS = ".checksums.json"
_OPTIMIZER = "optimizer.safetensors"
_FLOAT32_BYTES = 4

Entry: TypeAlias = tuple[str, tuple[int, ...], Callable[[], Tensor]]
"""Name and shape of a tensor, and what returns it in every process when its turn comes."""


def save_state(checkpoint: Path, module: nn.Module, optimizer: Optimizer | ZeroOptimizer, writes: bool) -> None:
    """Save trained parameters in float32 and Adam's moments; all processes must call this.

    Tensors are gathered, written and freed one after the other.

    Args:
        checkpoint: A folder.
        module: What is trained.
        optimizer: AdamW, or the optimizer that ZeRO wraps around it.
        writes: Whether this process writes; one does.
    """
    trained = _trained(module)
    save_weights(checkpoint / WEIGHTS, module, writes)
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


def load_state(checkpoint: Path, module: nn.Module, optimizer: Optimizer | ZeroOptimizer) -> None:
    """Set parameters and Adam's moments to what `save_state` has saved; all processes must call this.

    `begin_moments` must have been called.

    Args:
        checkpoint: Its folder.
        module: What is trained.
        optimizer: AdamW, or the optimizer that ZeRO wraps around it.

    Raises:
        CheckpointError: If a file is missing, cut short, or not what was written.
    """
    load_weights(checkpoint, module)
    with _opened(checkpoint / _OPTIMIZER) as moments:
        for name, parameter in _trained(module):
            for moment in MOMENTS:
                set_moment(parameter, optimizer, moment, moments.read(f"{moment}.{name}"))


def load_weights(folder: Path, module: nn.Module) -> None:
    """Set parameters to what `save_weights` has saved.

    Args:
        folder: Where it is `model.safetensors`.
        module: What is trained.

    Raises:
        CheckpointError: If the file is missing, cut short, or not what was written.
    """
    with _opened(folder / WEIGHTS) as weights:
        for name, parameter in _trained(module):
            set_weight(parameter, weights.read(name))


def copy_weights(checkpoint: Path, module: str, file: Path) -> None:
    """Save what a checkpoint holds of one of the modules that are trained, as `save_weights` saves that module.

    Args:
        checkpoint: Its folder.
        module: The module's name.
        file: A safetensors file.

    Raises:
        CheckpointError: If the checkpoint is not what was written.
    """
    prefix = f"{module}."
    with _opened(checkpoint / WEIGHTS) as weights:
        tensors = [
            (name.removeprefix(prefix), weights.shape(name), partial(weights.read, name))
            for name in weights.checksums
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
    write_sealed(checkpoint / MARK, {"identity": identity, "files": _small_files(checkpoint)})
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            shutil.rmtree(other, ignore_errors=True)


def last_whole(folder: Path, identity: str | None = None) -> Path | None:
    """Return the latest whole checkpoint in a folder, or None.

    One whose mark or curve is not what was written counts as none.

    Args:
        folder: Of the checkpoints.
        identity: A hash of what must be trained, on what and how; without it, anything may be.
    """
    marks = folder.glob(f"checkpoint-*/{MARK}")
    return max((mark.parent for mark in marks if _is_whole(mark, identity)), key=step_of, default=None)


def _is_whole(mark: Path, identity: str | None) -> bool:
    content = read_sealed(mark)
    if content is None or identity not in (None, content["identity"]):
        return False
    try:
        return bool(content["files"] == _small_files(mark.parent))
    except FileNotFoundError:
        return False  # a newer one has just replaced it


def _small_files(checkpoint: Path) -> dict[str, str]:
    """Checksums of the files beside the tensors."""
    files = [*checkpoint.glob(f"*{_CHECKSUMS}"), *checkpoint.glob(TRAINER_STATE_NAME)]
    return {file.name: xxh3_128_hexdigest(file.read_bytes()) for file in files}


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step after which a checkpoint was written.

    Args:
        checkpoint: A folder named `checkpoint-STEP`.
    """
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters in the module's order; a tied one has one name."""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


@dataclass(frozen=True, slots=True)
class _Tensors:
    """The tensors of a file that `_write` wrote, each verified as it is read."""

    file: Path
    checksums: Mapping[str, str]
    stored: Any  # safetensors annotates none of its methods

    def shape(self, name: str) -> tuple[int, ...]:
        """Return what the file says of a tensor that is yet to be read."""
        return tuple(self.stored.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """Return a tensor as it was written."""
        tensor: Tensor = self.stored.get_tensor(name)
        if tensor.dtype != torch.float32 or _checksum(tensor.numpy()) != self.checksums.get(name):
            raise _damaged(self.file, f"its tensor {name} is not what was written there")
        return tensor


@contextmanager
def _opened(file: Path) -> Iterator[_Tensors]:
    """Open what `_write` wrote."""
    checksums = read_sealed(_checksums_of(file))
    if checksums is None:
        raise _damaged(_checksums_of(file), "it is missing or not what was written there")
    try:
        with safe_open(file, framework="pt") as stored:
            yield _Tensors(file, checksums, stored)
    except (FileNotFoundError, SafetensorError) as error:
        raise _damaged(file, " ".join(str(error).split())) from None


def _damaged(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{file} cannot be used: {reason}; check the disk, delete the folder {file.parent} and repeat the command"
    )


def _checksums_of(file: Path) -> Path:
    return file.with_suffix(_CHECKSUMS)


def _checksum(values: NDArray[np.float32]) -> str:
    """Of shape and numbers."""
    digest = xxh3_128(str(values.shape).encode())
    digest.update(values.data)
    return digest.hexdigest()


def _write(file: Path, tensors: Iterable[Entry], writes: bool) -> None:
    """Write a safetensors file of float32 tensors, and their checksums beside it."""
    entries = list(tensors)
    sizes = [(name, "F32", shape, _FLOAT32_BYTES * torch.Size(shape).numel()) for name, shape, _ in entries]
    if not writes:
        for _, _, get in entries:
            get()
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    checksums = {}
    with open(file, "wb") as handle:
        handle.write(safetensors_header(sizes))
        for name, _, get in entries:
            values = get().detach().float().cpu().contiguous().numpy()
            handle.write(values.data)
            checksums[name] = _checksum(values)
    write_sealed(_checksums_of(file), checksums)
