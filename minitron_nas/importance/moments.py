"""Second moments of a model's residual stream, as every norm sees it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitron_nas.architecture.layout import Layout, TensorRow
from minitron_nas.distillation.tokens import PackedTokens
from minitron_nas.families.checkpoint import Checkpoint
from minitron_nas.importance.sweep import Section, one_pass, sweep
from minitron_nas.progress import Progress, silent


def stream_moments(
    model: Any, layout: Layout, calibration: PackedTokens, batch_sequences: int = 4, progress: Progress = silent
) -> dict[str, Tensor]:
    """Measure E[n n^T] for every norm that reads the residual stream, n its normalised input.

    n is what the norm's gain is applied to: the stream, less its mean where the norm subtracts it,
    divided by its root mean square. Each matrix has the trace `hidden_size`.

    Args:
        model: A causal LM on its device.
        layout: The table of its family.
        calibration: The text.
        batch_sequences: Sequences of one forward pass.
        progress: Told about tokens.

    Returns:
        (hidden_size, hidden_size), float32, on the CPU, by the name of the norm's gain in the table.
    """
    sums: dict[str, Tensor] = {}
    one_pass(model, calibration, partial(_hooks, layout, sums), batch_sequences, progress)
    return _means(sums, calibration)


def sweep_moments(
    checkpoint: Checkpoint,
    calibration: PackedTokens,
    folder: Path,
    batch_sequences: int = 4,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Measure the same with one layer in memory at a time; the matrices are those of one pass.

    All matrices are kept in memory: two for every layer, and one, of hidden_size^2 float32 numbers.

    Args:
        checkpoint: The model.
        calibration: The text.
        folder: Where hidden states go that memory is too small for; holds nothing afterwards.
        batch_sequences: Sequences of one forward pass.
        progress: Told about tokens, counted once for every layer.

    Raises:
        DiskSpaceError: If neither memory nor disk can hold the hidden states.
    """
    sums: dict[str, Tensor] = {}
    watch = partial(_hooks, checkpoint.layout, sums)
    sweep(checkpoint, calibration, watch, folder, batch_sequences, progress)
    return _means(sums, calibration)


def normalised(stream: Tensor, layout: Layout) -> Tensor:
    """Return what a norm's gain is applied to, float32.

    Args:
        stream: (..., hidden_size), the norm's input.
        layout: Says whether the norm subtracts the mean over channels.
    """
    wide = stream.float()
    if layout.norm_centres:
        wide = wide - wide.mean(dim=-1, keepdim=True)
    return wide * wide.square().mean(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny).rsqrt()


@contextmanager
def _hooks(layout: Layout, sums: dict[str, Tensor], section: Section) -> Iterator[None]:
    handles = []

    def watch(row: TensorRow, layer: int | None) -> None:
        name = row.name.format(layer=layer)

        def add(_: Any, args: Any) -> None:
            flat = normalised(args[0], layout).flatten(0, -2)
            if name not in sums:
                sums[name] = flat.new_zeros((flat.shape[1], flat.shape[1]))
            sums[name].addmm_(flat.T, flat)

        handles.append(section.module(layout.module_of(row), layer).register_forward_pre_hook(add))

    try:
        for row in layout.stream_norms():
            if row.per_layer:
                for layer in section.layers:
                    watch(row, layer)
            elif section.is_last:
                watch(row, None)
        yield
        # So that a device holds the matrices of one section only.
        sums.update({name: total.cpu() for name, total in sums.items()})
    finally:
        for handle in handles:
            handle.remove()


def _means(sums: dict[str, Tensor], calibration: PackedTokens) -> dict[str, Tensor]:
    return {name: total.div_(calibration.num_tokens) for name, total in sums.items()}
