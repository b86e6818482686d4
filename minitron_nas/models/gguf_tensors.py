"""From the tensors of a GGUF file to those of a checkpoint: names, layouts, and whether all of them are there."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minitron_nas.architecture.layout import Layout, TensorPlace
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import CheckpointError
from minitron_nas.models.gguf_config import OUTPUT
from minitron_nas.models.gguf_file import GgufFile
from minitron_nas.models.gguf_rope import ROPE_TENSORS
from minitron_nas.progress import Progress

_SHOWN = 3
_GAINS_WITH_ONE = frozenset({"gemma2", "gemma3", "nemotron"})
"""Architectures whose converter adds to the gains of norms what the model adds anew."""

_CONV1D = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
Values = NDArray[np.float32]


class GgufNames:
    """The names that llama.cpp gives to the tensors of a family."""

    def __init__(self, file: GgufFile, layout: Layout, num_layers: int) -> None:
        """Look them up.

        Args:
            file: The file; says its architecture.
            layout: The table of its family.
            num_layers: How many layers the model has.
        """
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map  # deferred: few teachers are GGUF files

        (kind,) = [kind for kind, name in MODEL_ARCH_NAMES.items() if name == file.keys["general.architecture"]]
        self._map, self._layout, self._num_layers = get_tensor_name_map(kind, num_layers), layout, num_layers

    def of(self, name: str) -> str:
        """Return the name of a tensor.

        Args:
            name: By the table; of one of several experts, which a GGUF file holds together, without its number.
        """
        module, _, ending = name.rpartition(".")
        return f"{self._map.get_name(module) or module}.{ending}"

    def flags(self, file: GgufFile) -> dict[str, bool]:
        """Return the keys of a `config.json` that say which optional tensors a model has.

        Args:
            file: The file.
        """
        found: dict[str, bool] = {}
        for row in self._layout.rows:
            for flag in {row.when} - {None}:
                names = (self.of(row.name.format(layer=layer, expert=0)) for layer in range(self._num_layers))
                there = any(name in file.tensors for name in names)
                for key in self._layout.config_names(str(flag)):
                    found[key] = found.get(key, False) or there
        return {**found, "tie_word_embeddings": OUTPUT not in file.tensors}

    def place(self, place: TensorPlace) -> str:
        """Return the name of the tensor that holds one of the table.

        Args:
            place: Which one.
        """
        return self.of(place.row.name.replace(".{expert}", "").format(layer=place.layer))


def check_names(file: GgufFile, layout: Layout, architecture: Architecture, names: GgufNames) -> None:
    """Refuse a file that lacks a tensor of its model, holds one that the model has no place for, or of another shape.

    Args:
        file: The file.
        layout: The table of its family.
        architecture: The model's shape.
        names: What its tensors are called.

    Raises:
        CheckpointError: With the names.
    """
    needed: dict[str, tuple[int, ...]] = {}
    for place in layout.tensors(architecture):
        shape = place.row.shape(architecture)
        stored = shape[::-1] if _is_turned(file, names.place(place)) else shape
        needed[names.place(place)] = (architecture.num_experts, *stored) if place.row.per_expert else stored
    found = file.tensors
    faults = [f"tensor {name!r} of shape {shape} is missing" for name, shape in needed.items() if name not in found]
    faults += [
        f"tensor {name!r} has no place in transformers' {layout.model_type}"
        for name in found.keys() - needed.keys() - ROPE_TENSORS
    ]
    faults += [
        f"tensor {name!r} has shape {found[name].shape}, not {shape}"
        for name, shape in needed.items()
        if name in found and found[name].shape != shape
    ]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise CheckpointError(
            f"{file.path} is not read, because not all of it would be used as it was meant: "
            f"{'; '.join(sorted(faults)[:_SHOWN])}{more}; give a whole file, or a safetensors folder of the model"
        )


def read_tensors(
    file: GgufFile,
    config: Mapping[str, Any],
    places: list[tuple[TensorPlace, str]],
    dtype: torch.dtype,
    progress: Progress,
) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, by the names of its family's table.

    Args:
        file: The file, checked.
        config: The content of the model's `config.json`.
        places: Each tensor with the name of the one that holds it.
        dtype: What they are rounded to.
        progress: Told the number of bytes read.
    """
    undo = _undoing(file, config)
    holders = dict.fromkeys(name for _, name in places)
    total, done = sum(file.tensors[name].num_bytes for name in holders), 0
    tensors: dict[str, Tensor] = {}
    for holder in holders:
        values = undo(holder, file.tensors[holder].values())
        for place, name in places:
            if name == holder:
                own = values if place.expert is None else values[place.expert]
                tensors[place.name] = torch.from_numpy(np.array(own, dtype=np.float32)).to(dtype)
        done += file.tensors[holder].num_bytes
        progress(done, total)
    return tensors


def _undoing(file: GgufFile, config: Mapping[str, Any]) -> Callable[[str, Values], Values]:
    """What brings the values of a tensor back to the order that transformers has them in."""
    kind = file.keys["general.architecture"]
    heads = {"attn_q": config.get("num_attention_heads", 0), "attn_k": config.get("num_key_value_heads", 0)}

    def undo(name: str, values: Values) -> Values:
        part = name.split(".")[-2]
        if kind == "llama" and part in heads:  # the two halves of each head's rotation lie interleaved
            pairs = values.reshape(heads[part], -1, 2, *values.shape[1:])
            return pairs.swapaxes(1, 2).reshape(values.shape)
        if kind in _GAINS_WITH_ONE and name.endswith("norm.weight"):
            return values - np.float32(1)
        return values.T if _is_turned(file, name) else values

    return undo


def _is_turned(file: GgufFile, name: str) -> bool:
    return file.keys["general.architecture"] == "gpt2" and name.endswith(_CONV1D)
