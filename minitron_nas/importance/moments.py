"""Second moments: of the residual stream as every norm sees it, and of what every output projection reads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from minitron_nas.architecture.layout import Axis, Layout
from minitron_nas.distillation.signals import final_hidden
from minitron_nas.distillation.tokens import PackedTokens
from minitron_nas.progress import Progress, silent


@torch.no_grad()
def second_moments(
    model: Any,
    layout: Layout,
    calibration: PackedTokens,
    stream: bool = True,
    inputs: bool = True,
    batch_sequences: int = 4,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Measure E[x x^T] over the tokens of a text.

    For each norm that reads the residual stream, x is what the norm's gain is applied to: the
    stream, less its mean where the norm subtracts it, divided by its root mean square; the trace is
    `hidden_size`. For each output projection of attention and FFN, x is its input; an expert's tokens
    are those that the router sends to it.

    Args:
        model: A causal LM on its device.
        layout: The table of its family.
        calibration: The text.
        stream: Whether to measure the norms.
        inputs: Whether to measure the output projections.
        batch_sequences: Sequences of one forward pass.
        progress: Told about tokens.

    Returns:
        (size, size), float32, on the CPU, by the name of the norm's gain or the projection's weight in the table.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    sums: dict[str, _Sum] = {}
    done = 0
    with _hooks(model, layout, sums, stream, inputs):
        for _, batch in calibration.batches(batch_sequences):
            final_hidden(model, batch.input_ids.to(device), batch.position_ids.to(device))
            done += batch.num_tokens
            progress(done, calibration.num_tokens)
    model.train(training)
    return {name: total.mean().cpu() for name, total in sums.items()}


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


class _Sum:
    """A sum of outer products in float32."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._total = torch.zeros((size, size), device=device)
        self._num_tokens = 0

    def add(self, flat: Tensor) -> None:
        self._total.addmm_(flat.T, flat)
        self._num_tokens += len(flat)

    def mean(self) -> Tensor:
        return self._total / max(1, self._num_tokens)


@contextmanager
def _hooks(model: Any, layout: Layout, sums: dict[str, _Sum], stream: bool, inputs: bool) -> Iterator[None]:
    modules = dict(model.named_modules())
    layers = range(model.config.num_hidden_layers)
    handles = []

    def add(name: str, values: Tensor) -> None:
        flat = values.float().flatten(0, -2)
        if name not in sums:
            sums[name] = _Sum(flat.shape[1], flat.device)
        sums[name].add(flat)

    def before(module: str, action: Callable[..., None]) -> None:
        handles.append(modules[module].register_forward_pre_hook(action))

    def watch_norm(name: str, module: str) -> None:
        before(module, lambda _, args: add(name, normalised(args[0], layout)))

    def watch_input(name: str, module: str) -> None:
        before(module, lambda _, args: add(name, args[0]))

    try:
        for row in layout.stream_norms() if stream else ():
            for layer in layers if row.per_layer else (None,):
                watch_norm(row.name.format(layer=layer), layout.module_of(row).format(layer=layer))
        for axis in (Axis.GROUP_HEADS, layout.neuron_axis) if inputs else ():
            row = layout.writer(axis)
            for layer in layers:
                if row.per_expert:
                    names = row.name.format(layer=layer, expert="{expert}")
                    module = layout.module_of(row).partition(".{expert}")[0].format(layer=layer)
                    before(module, lambda module, args, names=names: _add_experts(add, names, module, *args))
                else:
                    watch_input(row.name.format(layer=layer), layout.module_of(row).format(layer=layer))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_experts(
    add: Callable[[str, Tensor], None], names: str, module: Any, states: Tensor, chosen: Tensor, _: Tensor
) -> None:
    """Compute again what each expert's down projection reads."""
    for expert in range(len(module.down_proj)):
        tokens, _ = torch.where(chosen == expert)
        gate, up = linear(states[tokens], module.gate_up_proj[expert]).chunk(2, dim=-1)
        add(names.format(expert=expert), module.act_fn(gate) * up)
