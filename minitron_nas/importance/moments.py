"""Second moments of a model's residual stream, as every norm sees it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from minitron_nas.architecture.layout import Layout
from minitron_nas.distillation.signals import final_hidden
from minitron_nas.distillation.tokens import PackedTokens
from minitron_nas.progress import Progress, silent


@torch.no_grad()
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
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    done = 0
    with _hooks(model, layout, sums):
        for _, batch in calibration.batches(batch_sequences):
            final_hidden(model, batch.input_ids.to(device), batch.position_ids.to(device))
            done += batch.num_tokens
            progress(done, calibration.num_tokens)
    model.train(training)
    return {name: (total / calibration.num_tokens).cpu() for name, total in sums.items()}


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
def _hooks(model: Any, layout: Layout, sums: dict[str, Tensor]) -> Iterator[None]:
    modules = dict(model.named_modules())
    handles = []

    def watch(name: str, module: Any) -> None:
        def add(_: Any, args: Any) -> None:
            flat = normalised(args[0], layout).flatten(0, -2)
            if name not in sums:
                sums[name] = flat.new_zeros((flat.shape[1], flat.shape[1]))
            sums[name].addmm_(flat.T, flat)

        handles.append(module.register_forward_pre_hook(add))

    try:
        for row in layout.stream_norms():
            for layer in range(model.config.num_hidden_layers) if row.per_layer else (None,):
                watch(row.name.format(layer=layer), modules[layout.module_of(row).format(layer=layer)])
        yield
    finally:
        for handle in handles:
            handle.remove()
