"""What the layers of a model read beside hidden states, carried along while they run one after the other."""

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from minitron_nas.architecture.kinds import first_word, gives, shares
from minitron_nas.architecture.layout import axis_sizes
from minitron_nas.importance.hidden_states import HiddenStates
from minitron_nas.importance.layered_model import LayeredModel
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.layer_model import KeysAndValues, run_layer
from minitron_nas.text.tokens import PackedTokens


class Beside:
    """Tokens, where every layer has an embedding of its own, and the keys and values that layers read of others.

    Attributes:
        vocabulary: (num_tokens,), the tokens whose embeddings the layers have to have; None where they have none.
    """

    def __init__(self, layers: LayeredModel, text: PackedTokens, folder: Path, stack: ExitStack) -> None:
        """Begin before the first layer.

        Args:
            layers: The model.
            text: The text that runs through it.
            folder: Where keys and values go that memory is too small for.
            stack: Frees them.
        """
        self._layers, self._shape, self._folder, self._stack = layers, text.input_ids.shape, folder, stack
        self.vocabulary = text.in_memory().input_ids.unique() if layers.reads_tokens else None
        self._kept: dict[str, HiddenStates] = {}
        self._num_heads: dict[str, int] = {}

    def run(self, model: CausalLM, number: int, indices: Tensor, states: Tensor, batch: PackedTokens) -> Tensor:
        """Run one batch of hidden states through a layer.

        Args:
            model: The layer, with embeddings of the vocabulary.
            number: Of the layer.
            indices: (batch,), positions of the sequences in the text.
            states: (batch, seq_len, hidden_size), what the layer reads, on its device.
            batch: The sequences themselves.

        Returns:
            (batch, seq_len, hidden_size), what the layer puts out.
        """
        device = self._layers.device
        ids = None if self.vocabulary is None else torch.searchsorted(self.vocabulary, batch.input_ids).to(device)
        kind = self._layers.architecture.kinds[number]
        attention = first_word(kind)
        shared: KeysAndValues = {attention: self._read(attention, indices)} if shares(kind) else {}
        positions = batch.position_ids.to(device)
        output = run_layer(model, self._layers.layout, states, positions, ids, shared)
        if gives(kind):
            self._write(attention, kind, indices, shared[attention])
        return output

    def _write(self, attention: str, kind: str, indices: Tensor, keys_and_values: tuple[Tensor, Tensor]) -> None:
        if attention not in self._kept:
            layout, sizes = self._layers.layout, axis_sizes(self._layers.architecture)
            width = next(int(kept.size(sizes)) for kinds, _, kept in layout.attentions() if kind in kinds)
            made = HiddenStates.make((self._shape[0], self._shape[1], width), self._layers.dtype, self._folder)
            self._kept[attention] = self._stack.enter_context(made)
        self._num_heads[attention] = keys_and_values[0].shape[1]
        flat = [each.transpose(1, 2).flatten(2) for each in keys_and_values]
        self._kept[attention].write(indices, torch.cat(flat, dim=-1))

    def _read(self, attention: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        flat = self._kept[attention].read(indices).to(self._layers.device)
        heads = flat.unflatten(-1, (2, self._num_heads[attention], -1))
        keys, values = (heads[:, :, number].contiguous().transpose(1, 2) for number in range(2))
        return keys, values
