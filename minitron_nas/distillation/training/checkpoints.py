"""Checkpoints of a training: what is in them, which are whole, and which belong to what is being trained.

A checkpoint holds whole tensors under the parameters' names, whichever engine has written it, so a
training goes on under another engine and on another number of processes:

    model.safetensors, optimizer.safetensors             the tensors
    model.checksums.json, optimizer.checksums.json       a checksum of each, verified whenever one is read
    trainer_state.json                                   the curve so far
    complete                                             what is trained, and checksums of the other small files

Of several processes each writes what it holds, to `model-RANK-of-PROCESSES.safetensors` and so on (`tensors.py`).
The last is written last. Where it is not there, or a small file is not what it says, there is no checkpoint.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Self

from torch import nn
from torch.optim import Optimizer
from transformers.trainer import TRAINER_STATE_NAME
from xxhash import xxh3_128_hexdigest

from minitron_nas.distillation.training.tensors import CHECKSUMS, Piece, opened, part_file, write_tensors
from minitron_nas.execution.deepspeed import (
    MOMENTS,
    ZeroOptimizer,
    full_weight,
    held_moment,
    held_numbers,
    held_weight,
    set_moment,
    set_weight,
)
from minitron_nas.storage.sealed import read_sealed, write_sealed

STUDENT = "student"
"""What the model is called among the modules that are trained."""

WEIGHTS = "model.safetensors"
"""The file of the trained weights in a checkpoint."""

MARK = "complete"
_MODEL = "model"
_OPTIMIZER = "optimizer"


@dataclass(frozen=True, slots=True)
class OwnState:
    """What one process writes of trained parameters in float32 and of Adam's moments: together all write all, once.

    Attributes:
        weights: Of the parameters.
        moments: Of both moments.
        rank: The process.
        num_processes: Of all.
    """

    weights: tuple[Piece, ...]
    moments: tuple[Piece, ...]
    rank: int
    num_processes: int

    @classmethod
    def of(cls, module: nn.Module, optimizer: Optimizer | ZeroOptimizer, rank: int = 0, num_processes: int = 1) -> Self:
        """Choose what lies in this process alone, and an equal share of what lies in all.

        Args:
            module: What is trained.
            optimizer: AdamW, or the optimizer that ZeRO wraps around it.
            rank: The process.
            num_processes: Of all.
        """
        own = list(_own_numbers(_trained(module), rank, num_processes))
        return cls(
            tuple(Piece(name, _shape(p), numbers, partial(held_weight, p, numbers)) for name, p, numbers in own),
            tuple(
                Piece(f"{moment}.{name}", _shape(p), numbers, partial(held_moment, p, optimizer, moment, numbers))
                for moment in MOMENTS
                for name, p, numbers in own
            ),
            rank,
            num_processes,
        )

    @property
    def num_bytes(self) -> int:
        """Of all numbers."""
        return sum(piece.num_bytes for piece in (*self.weights, *self.moments))

    def copied(self, over: Self | None = None) -> Self:
        """Return the state with numbers in main memory that training does not change.

        Args:
            over: An earlier copy of the same tensors, which is lost.
        """
        return replace(
            self,
            weights=_copied(self.weights, over.weights if over is not None else None),
            moments=_copied(self.moments, over.moments if over is not None else None),
        )

    def save(self, checkpoint: Path) -> None:
        """Write it.

        Args:
            checkpoint: A folder, the same for all processes.
        """
        for stem, pieces in ((_MODEL, self.weights), (_OPTIMIZER, self.moments)):
            write_tensors(part_file(checkpoint, stem, self.rank, self.num_processes), pieces)


def save_weights(file: Path, module: nn.Module, writes: bool) -> None:
    """Save trained parameters in float32; all processes must call this.

    Tensors are gathered, written and freed one after the other.

    Args:
        file: A safetensors file.
        module: What is trained.
        writes: Whether this process writes; one does.
    """
    pieces = [
        Piece(name, _shape(parameter), range(_num_numbers(parameter)), partial(full_weight, parameter))
        for name, parameter in _trained(module)
    ]
    if writes:
        write_tensors(file, pieces)
        return
    for piece in pieces:
        piece.get()


def load_state(checkpoint: Path, module: nn.Module, optimizer: Optimizer | ZeroOptimizer) -> None:
    """Set parameters and Adam's moments to what `OwnState` has saved; all processes must call this.

    `begin_moments` must have been called.

    Args:
        checkpoint: Its folder.
        module: What is trained.
        optimizer: AdamW, or the optimizer that ZeRO wraps around it.

    Raises:
        CheckpointError: If a file is missing, cut short, or not what was written.
    """
    load_weights(checkpoint, module)
    with opened(checkpoint, _OPTIMIZER) as moments:
        for name, parameter in _trained(module):
            for moment in MOMENTS:
                set_moment(parameter, optimizer, moment, moments.read(f"{moment}.{name}"))


def load_weights(folder: Path, module: nn.Module) -> None:
    """Set parameters to what `save_weights` or `OwnState` has saved.

    Args:
        folder: Where it is `model.safetensors`, or parts of that.
        module: What is trained.

    Raises:
        CheckpointError: If the file is missing, cut short, or not what was written.
    """
    with opened(folder, _MODEL) as weights:
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
    with opened(checkpoint, _MODEL) as weights:
        found = [(name, weights.shape(name)) for name in weights.names if name.startswith(prefix)]
        write_tensors(
            file,
            [
                Piece(name.removeprefix(prefix), shape, range(prod(shape)), partial(weights.read, name))
                for name, shape in found
            ],
        )


def mark_whole(checkpoint: Path, identity: str) -> None:
    """Mark a checkpoint as whole once it is on the disk, and remove all others.

    A killed process leaves a checkpoint without the mark.

    Args:
        checkpoint: A folder named `checkpoint-STEP`.
        identity: A hash of what is being trained, on what and how.
    """
    for file in (*checkpoint.glob(TRAINER_STATE_NAME), checkpoint):
        _bring_to_disk(file)  # which the tensors have been
    write_sealed(checkpoint / MARK, {"identity": identity, "files": _small_files(checkpoint)})
    _bring_to_disk(checkpoint)
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
    files = [*checkpoint.glob(f"*{CHECKSUMS}"), *checkpoint.glob(TRAINER_STATE_NAME)]
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


def _num_numbers(parameter: nn.Parameter) -> int:
    return prod(_shape(parameter))


def _own_numbers(
    trained: list[tuple[str, nn.Parameter]], rank: int, num_processes: int
) -> Iterator[tuple[str, nn.Parameter, range]]:
    """Yield name, parameter and which of its numbers this process writes; nothing where that is none of some."""
    total = sum(_num_numbers(parameter) for _, parameter in trained)
    first, last = (total * number // num_processes for number in (rank, rank + 1))
    begin = 0
    for name, parameter in trained:
        size = _num_numbers(parameter)
        numbers = held_numbers(parameter)
        if numbers is None:
            numbers = range(size)[max(first - begin, 0) : max(last - begin, 0)]
        begin += size
        if numbers or not size:
            yield name, parameter, numbers


def _copied(pieces: tuple[Piece, ...], over: tuple[Piece, ...] | None) -> tuple[Piece, ...]:
    earlier = over or [None] * len(pieces)
    return tuple(piece.copied(own) for piece, own in zip(pieces, earlier, strict=True))


def _bring_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
