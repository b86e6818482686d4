"""Running calibration text through a model while hooks measure: at once, or layer by layer.

A model that fits into memory runs whole. Of one that does not, one layer after the other is read,
takes the hidden states of all text a step further, and is released. Both paths compute the same, on
the same batches, and what measures is told only which layers are there.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from minitron_nas.architecture.layout import Layout, TensorRow
from minitron_nas.distillation.signals.teacher import final_hidden
from minitron_nas.execution.device import release_memory, trim_memory
from minitron_nas.importance.beside import Beside
from minitron_nas.importance.hidden_states import HiddenStates
from minitron_nas.importance.layered_model import LayeredModel
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.layer_model import kinds_of
from minitron_nas.progress import Progress
from minitron_nas.text.tokens import PackedTokens


@dataclass(frozen=True, slots=True)
class Section:
    """Consecutive layers of a model that are in memory: all of them, or one.

    Attributes:
        model: A causal LM of these layers.
        layers: Their numbers in the whole model.
        is_last: Whether the whole model ends with them, so that the final norm reads what they put out.
    """

    model: CausalLM
    layers: range
    is_last: bool

    @classmethod
    def whole(cls, model: CausalLM) -> "Section":
        """Return all of a model."""
        return cls(model, range(model.config.num_hidden_layers), is_last=True)

    def module(self, name: str, layer: int | None = None) -> nn.Module:
        """Return a module of the model.

        Args:
            name: Its name, with `{layer}` if it belongs to a layer.
            layer: The layer's number in the whole model.
        """
        return self.model.get_submodule(name.format(layer=None if layer is None else layer - self.layers.start))

    def layers_with(self, row: TensorRow, layout: Layout) -> list[int]:
        """Return the numbers, in the whole model, of the layers that have a tensor.

        Args:
            row: The tensor.
            layout: The table of the model's family.
        """
        kinds = kinds_of(self.model, layout)
        return [layer for layer, kind in zip(self.layers, kinds, strict=True) if row.in_kind(kind)]


Watch: TypeAlias = Callable[[Section], AbstractContextManager[None]]
"""Measures a section for the duration of a block."""


@torch.no_grad()
def one_pass(
    model: CausalLM, calibration: PackedTokens, watch: Watch, batch_sequences: int, progress: Progress
) -> None:
    """Run text through a whole model.

    Args:
        model: A causal LM on its device.
        calibration: The text.
        watch: Measures.
        batch_sequences: Sequences of one forward pass.
        progress: Told about tokens.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    done = 0
    try:
        with watch(Section.whole(model)):
            for _, batch in calibration.batches(batch_sequences):
                final_hidden(model, batch.input_ids.to(device), batch.position_ids.to(device))
                done += batch.num_tokens
                progress(done, calibration.num_tokens)
    finally:
        model.train(training)


@torch.no_grad()
def sweep(
    checkpoint: Checkpoint,
    calibration: PackedTokens,
    watched: Sequence[tuple[int, Watch]],
    folder: Path,
    batch_sequences: int,
    progress: Progress,
) -> None:
    """Run text through a model that is never in memory as a whole, on this process' device.

    Args:
        checkpoint: The model.
        calibration: The text.
        watched: The sequences of each of its parts, whole batches but for the last, and what measures it; that is
            called once for every layer.
        folder: Where hidden states go that memory is too small for; holds nothing afterwards.
        batch_sequences: Sequences of one forward pass.
        progress: Told about tokens, counted once for every layer.

    Raises:
        DiskSpaceError: If neither memory nor disk can hold the hidden states.
    """
    num_layers = checkpoint.architecture.num_hidden_layers
    layers = LayeredModel.of_files(checkpoint.headers, checkpoint.config, checkpoint.architecture, checkpoint.layout)
    shape = (*calibration.input_ids.shape, checkpoint.architecture.hidden_size)
    done, total = 0, calibration.num_tokens * num_layers
    with HiddenStates.make(shape, layers.dtype, folder) as states, ExitStack() as stack:
        layers.embed(calibration, states, batch_sequences)
        beside = Beside(layers, calibration, folder, stack)
        for layer in range(num_layers):
            with layers.layer(layer, beside.vocabulary) as model:
                section = Section(model, range(layer, layer + 1), layer == num_layers - 1)
                batches = calibration.batches(batch_sequences)
                for num_sequences, watch in watched:
                    with watch(section):
                        for indices, batch in islice(batches, -(-num_sequences // batch_sequences)):
                            inputs = states.read(indices).to(layers.device)
                            states.write(indices, beside.run(model, layer, indices, inputs, batch))
                            done += batch.num_tokens
                            progress(done, total)
            trim_memory()
    release_memory()
