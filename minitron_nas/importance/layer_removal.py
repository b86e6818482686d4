"""Running a model without some of its layers, and without running those before them again and again."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minitron_nas.architecture.kinds import gives
from minitron_nas.architecture.layout import Layout
from minitron_nas.distillation.signals.teacher import final_hidden
from minitron_nas.importance.sums import BATCH_SEQUENCES
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.layer_model import LayerOutput, decoder_layers, input_of, kinds_of
from minitron_nas.text.tokens import PackedTokens


@contextmanager
def without_layers(model: CausalLM, layout: Layout, layers: Collection[int]) -> Iterator[None]:
    """Let a loaded model run as if some of its layers were not there, for the duration of the block.

    Such a layer hands on the hidden states that it is given. Blocks do not nest.

    Args:
        model: A causal LM.
        layout: Its family table; says where the layers are.
        layers: Indices of the layers.
    """
    modules = decoder_layers(model, layout, layers)
    try:
        for module in modules:
            module.forward = partial(_hand_on, as_tuple=layout.layers_return_tuples)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


def _hand_on(hidden_states: Tensor, *_: Any, as_tuple: bool, **__: Any) -> LayerOutput:
    return (hidden_states, None) if as_tuple else hidden_states  # no weights of attention, which Bamba unpacks


class FirstLayers:
    """What a model's first layers put out over a text: they run once, and not again for every run of layers behind.

    A layer whose keys and values others read runs every time, and so do all layers behind it.

    Passes over the text take its batches in the order of `PackedTokens.batches(BATCH_SEQUENCES)`.
    """

    def __init__(self, model: CausalLM, layout: Layout, tokens: PackedTokens) -> None:
        """Begin with nothing run.

        Args:
            model: A causal LM on its device.
            layout: Its family table.
            tokens: The text.
        """
        self._model, self._layout, self._tokens = model, layout, tokens
        kinds = kinds_of(model, layout)
        self._most = next((layer for layer, kind in enumerate(kinds) if gives(kind)), len(kinds))
        self._begin(frozenset())

    def _begin(self, removed: frozenset[int]) -> None:
        self._removed, self._done = removed, 0
        self._states: list[Tensor] = []

    @contextmanager
    def without(self, removed: frozenset[int], run: range) -> Iterator[None]:
        """Let the model make one pass over the text without some layers and a run of others, which it begins with.

        Args:
            removed: Layers that are out already.
            run: Those that leave with them.
        """
        first = min(run.start, self._most)
        if removed != self._removed or first < self._done:
            self._begin(removed)
        if first > self._done:
            self._states = self._read_by(first)
            self._done = first
        with self._continued(removed.union(run)):
            yield

    @torch.no_grad()
    def _read_by(self, layer: int) -> list[Tensor]:
        (module,) = decoder_layers(self._model, self._layout, [layer])
        with self._continued(self._removed):
            batches = self._tokens.batches(BATCH_SEQUENCES)
            return [input_of(module, partial(run_text, self._model, batch)) for _, batch in batches]

    @contextmanager
    def _continued(self, removed: frozenset[int]) -> Iterator[None]:
        """Let the model go on from where it is, for one pass over the text without some layers."""
        states = iter(self._states)
        with without_layers(self._model, self._layout, removed.union(range(self._done))):
            if self._done:
                (first,) = decoder_layers(self._model, self._layout, [0])
                as_tuple = self._layout.layers_return_tuples
                first.forward = lambda *_, **__: _hand_on(next(states), as_tuple=as_tuple)
            yield


def run_text(model: CausalLM, tokens: PackedTokens) -> Tensor:
    """Run a causal LM over sequences up to its output head.

    Args:
        model: A causal LM on its device.
        tokens: The sequences.

    Returns:
        (num_sequences, seq_len, hidden_size), after the final norm, on the model's device.
    """
    device = next(model.parameters()).device
    return final_hidden(model, tokens.input_ids.to(device), tokens.position_ids.to(device))
