"""Second moments: of the residual stream as every norm sees it, and of what every output projection reads."""

from collections.abc import Callable, Collection, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from minitron_nas.architecture.layout import Layout, TensorRow
from minitron_nas.architecture.spec import Architecture
from minitron_nas.importance.experts import expert_neurons, sent_to
from minitron_nas.importance.sums import BATCH_SEQUENCES
from minitron_nas.importance.sweep import Section, one_pass, sweep
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.progress import Progress, silent
from minitron_nas.text.tokens import PackedTokens

Readers: TypeAlias = Literal["norms", "projections", "all"]
"""Of what reads the second moments are measured: the norms of the residual stream, the output projections, or both."""


def second_moments(
    model: CausalLM,
    layout: Layout,
    calibration: PackedTokens,
    kept: MutableMapping[str, Tensor],
    readers: Readers = "all",
    progress: Progress = silent,
    layers: Collection[int] | None = None,
) -> None:
    """Measure E[x x^T] over the tokens of a text.

    For each norm that reads the residual stream, x is what the norm's gain is applied to: the
    stream, less its mean where the norm subtracts it, divided by its root mean square; the trace is
    `hidden_size`. For each output projection of attention and FFN, x is its input; an expert's tokens
    are those that the router sends to it.

    Args:
        model: A causal LM on its device.
        layout: The table of its family.
        calibration: The text.
        kept: Gets the matrices, (size, size), float32, on the CPU, by the name of the norm's gain or of the
            projection's weight in the table.
        readers: Of what to measure it.
        progress: Told about tokens.
        layers: In which of them; in all by default. What belongs to none counts to the last.
    """
    one_pass(model, calibration, partial(_hooks, layout, kept, readers, layers), BATCH_SEQUENCES, progress)


def sweep_moments(
    checkpoint: Checkpoint,
    calibration: PackedTokens,
    folder: Path,
    kept: MutableMapping[str, Tensor],
    readers: Readers = "all",
    progress: Progress = silent,
    layers: Collection[int] | None = None,
) -> None:
    """Measure the same with one layer, and its matrices, in memory at a time.

    Args:
        checkpoint: The model.
        calibration: The text.
        folder: Where hidden states go that memory is too small for; holds nothing afterwards.
        kept: Gets the matrices, as that of `second_moments` does.
        readers: Of what to measure it.
        progress: Told about tokens, counted once for every layer.
        layers: In which of them, as above.

    Raises:
        DiskSpaceError: If neither memory nor disk can hold the hidden states.
    """
    watch = partial(_hooks, checkpoint.layout, kept, readers, layers)
    sweep(checkpoint, calibration, [(calibration.num_sequences, watch)], folder, BATCH_SEQUENCES, progress)


@dataclass(frozen=True, slots=True)
class Moment:
    """A matrix that is measured.

    Attributes:
        name: Of the norm's gain or the projection's weight in the table.
        layer: In which it is measured.
        size: Its rows and columns.
    """

    name: str
    layer: int
    size: int

    @property
    def num_bytes(self) -> int:
        """Of the matrix."""
        return 4 * self.size**2


def moments_of(layout: Layout, architecture: Architecture, readers: Readers) -> list[Moment]:
    """Return the second moments of a model, in the order of its table.

    Args:
        layout: The table of its family.
        architecture: Its shape.
        readers: Those of what.
    """
    norms = layout.stream_norms() if readers != "projections" else ()
    writers = layout.writers() if readers != "norms" else ()
    last = architecture.num_hidden_layers - 1
    found = []
    for place in layout.tensors(architecture):
        if place.row in (*norms, *writers):
            shape = place.row.shape(architecture)
            size = shape[0] if place.row in norms or layout.inputs_first(place.row) else shape[-1]
            found.append(Moment(place.name, last if place.layer is None else place.layer, size))
    return found


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
def _hooks(
    layout: Layout,
    kept: MutableMapping[str, Tensor],
    readers: Readers,
    layers: Collection[int] | None,
    section: Section,
) -> Iterator[None]:
    sums: dict[str, _Sum] = {}
    handles = []
    own = {layer for layer in section.layers if layers is None or layer in layers}

    def add(name: str, values: Tensor) -> None:
        flat = values.float().flatten(0, -2)
        if name not in sums:
            sums[name] = _Sum(flat.shape[1], flat.device)
        sums[name].add(flat)

    def before(module: str, layer: int | None, action: Callable[[nn.Module, tuple[Any, ...]], None]) -> None:
        handles.append(section.module(module, layer).register_forward_pre_hook(action))

    def watch_norm(row: TensorRow, layer: int | None) -> None:
        name = row.name.format(layer=layer)
        before(layout.module_of(row), layer, lambda _, args: add(name, normalised(args[0], layout)))

    def watch_input(row: TensorRow, layer: int) -> None:
        module = layout.module_of(row)
        if row.per_expert:
            names = row.name.format(layer=layer, expert="{expert}")
            before(module, layer, lambda module, args: _add_experts(add, names, module, args))
        else:
            before(module, layer, lambda _, args: add(row.name.format(layer=layer), args[0]))

    try:
        for row in layout.stream_norms() if readers != "projections" else ():
            if row.per_layer:
                for layer in own.intersection(section.layers_with(row, layout)):
                    watch_norm(row, layer)
            elif section.is_last and section.layers[-1] in own:
                watch_norm(row, None)
        for row in layout.writers() if readers != "norms" else ():
            for layer in own.intersection(section.layers_with(row, layout)):
                watch_input(row, layer)
        yield
        for name in list(sums):
            kept[name] = sums.pop(name).mean().cpu()
    finally:
        for handle in handles:
            handle.remove()


def _add_experts(add: Callable[[str, Tensor], None], names: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    for expert in range(len(module.get_parameter("down_proj"))):
        _, inputs, _ = sent_to(module, expert, args)
        add(names.format(expert=expert), expert_neurons(module, expert, inputs))
