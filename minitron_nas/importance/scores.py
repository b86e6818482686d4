"""`ImportanceScores`: what one calibration pass says about every prunable part, as a value."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minitron_nas.storage.atomic import whole_folder
from minitron_nas.storage.schemas import SCORES
from minitron_nas.storage.tables import write_rows

_FILE = "scores.safetensors"


@dataclass(frozen=True, slots=True)
class ImportanceScores:
    """Importance of every channel, neuron, head, group and layer; higher is more important.

    Attributes:
        hidden: (hidden_size,), summed over all norms; one ranking for the whole network.
        neurons: (num_hidden_layers, intermediate_size).
        heads: (num_hidden_layers, num_attention_heads).
        kv_groups: (num_hidden_layers, num_key_value_heads).
        layers: (num_hidden_layers,), Block Importance.
    """

    hidden: Tensor
    neurons: Tensor
    heads: Tensor
    kv_groups: Tensor
    layers: Tensor

    def save(self, folder: Path, about: dict[str, str]) -> None:
        """Write `scores.safetensors` (with `about` as metadata) and `scores.parquet`, both or none."""
        tensors = {field.name: getattr(self, field.name).contiguous() for field in fields(self)}
        with whole_folder(folder) as partial:
            save_file(tensors, partial / _FILE, metadata=about)
            write_rows(partial, SCORES, self._rows())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        with safe_open(folder / _FILE, framework="pt") as file:
            return cls(**{field.name: file.get_tensor(field.name) for field in fields(cls)})

    def _rows(self) -> Iterator[dict[str, Any]]:
        yield from _ranked("hidden_size", None, self.hidden)
        for layer in range(len(self.layers)):
            yield from _ranked("intermediate_size", layer, self.neurons[layer])
            yield from _ranked("num_attention_heads", layer, self.heads[layer])
            yield from _ranked("num_key_value_heads", layer, self.kv_groups[layer])
        yield from _ranked("layer", None, self.layers)


def descending(scores: Tensor) -> Tensor:
    """Return the indices from the most to the least important; equal scores keep their order."""
    return torch.argsort(scores, descending=True, stable=True)


def _ranked(axis: str, layer: int | None, scores: Tensor) -> Iterator[dict[str, Any]]:
    ranks = torch.argsort(descending(scores)).tolist()
    for index, (score, rank) in enumerate(zip(scores.tolist(), ranks, strict=True)):
        yield {"axis": axis, "layer": layer, "index": index, "score": score, "rank": rank}
