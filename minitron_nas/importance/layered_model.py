"""`LayeredModel`: a model of which one layer at a time is in memory."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from minitron_nas.architecture.layout import Layout, TensorRow
from minitron_nas.architecture.spec import Architecture
from minitron_nas.execution.device import compute_dtype, pick_device
from minitron_nas.importance.hidden_states import HiddenStates
from minitron_nas.models.causal_lm import CausalLM, moved
from minitron_nas.models.layer_model import embed, layer_model, part_of_layer, release_weights
from minitron_nas.models.stock import read_entries, read_tensor
from minitron_nas.storage.weights import TensorHeader
from minitron_nas.text.tokens import PackedTokens

_ROWS_OF_ALL_LAYERS = 4096


@dataclass(frozen=True, slots=True)
class LayeredModel:
    """A model on this process' device, in the type that it computes in, of which layers are read when they are run.

    Attributes:
        read: Gives a tensor by its name in the table.
        read_rows: Gives some rows of a tensor, by its name and their ascending numbers.
        config: Content of its `config.json`.
        architecture: Its shape.
        layout: The table of its family.
        device: Where it runs.
    """

    read: Callable[[str], Tensor]
    read_rows: Callable[[str, Tensor], Tensor]
    config: Mapping[str, Any]
    architecture: Architecture
    layout: Layout
    device: torch.device

    @classmethod
    def of_files(
        cls, headers: Mapping[str, TensorHeader], config: Mapping[str, Any], architecture: Architecture, layout: Layout
    ) -> Self:
        """Return the model that stored tensors make up.

        Args:
            headers: Where each tensor lies.
            config: Content of its `config.json`.
            architecture: Its shape.
            layout: The table of its family.
        """
        return cls(
            lambda name: read_tensor(headers[name]),
            lambda name, rows: read_entries(headers[name], rows),
            config,
            architecture,
            layout,
            pick_device(),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights and hidden states."""
        return compute_dtype(self.device)

    @contextmanager
    def layer(self, number: int, vocabulary: Tensor | None = None) -> Iterator[CausalLM]:
        """Read one layer as a causal LM of its own, and free it at the end of the block.

        Args:
            number: Which layer.
            vocabulary: Ascending tokens whose rows its embeddings consist of; by default these are a few zeros.
        """
        own = [] if vocabulary is None else [self._embedding(vocabulary), self._own_embedding(number, vocabulary)]
        model = layer_model(self.read, self.config, self.architecture, self.layout, number, self.dtype, *own)
        try:
            yield moved(model, self.device)
        finally:
            release_weights(model)

    @property
    def reads_tokens(self) -> bool:
        """Whether the layers read tokens beside hidden states, because each has an embedding of its own."""
        return self.layout.embedding_of_layers(self.architecture) is not None

    def _embedding(self, vocabulary: Tensor) -> Tensor:
        return self.read_rows(self.layout.embedding.name, vocabulary)

    def _own_embedding(self, number: int, vocabulary: Tensor) -> Tensor | None:
        """Read some rows of a layer's part of an embedding of all layers, few of all layers at a time."""
        table = self.layout.embedding_of_layers(self.architecture)
        if table is None:
            return None
        read = (self.read_rows(table.name, tokens) for tokens in vocabulary.split(_ROWS_OF_ALL_LAYERS))
        return torch.cat([part_of_layer(rows, table, self.architecture, number) for rows in read])

    def module(self, layer: CausalLM, row: TensorRow) -> nn.Module:
        """Return the module of a layer that a tensor of the table belongs to.

        Args:
            layer: What `layer` gave.
            row: The tensor.
        """
        return layer.get_submodule(self.layout.module_of(row).format(layer=0))

    @torch.no_grad()
    def embed(self, text: PackedTokens, states: HiddenStates, batch_sequences: int) -> None:
        """Write what the first layer reads; of the embedding, only the rows that the text needs are in memory.

        Args:
            text: The text.
            states: Of as many sequences.
            batch_sequences: Sequences of one forward pass.
        """
        vocabulary, rows = text.in_memory().input_ids.unique(return_inverse=True)
        with self.layer(0, vocabulary) as first:
            for indices, batch in PackedTokens(rows, text.position_ids).batches(batch_sequences):
                ids, positions = batch.input_ids.to(self.device), batch.position_ids.to(self.device)
                states.write(indices, embed(first, self.layout, ids, positions))
