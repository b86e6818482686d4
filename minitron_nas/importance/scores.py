"""`ImportanceScores`: what one calibration pass says about every prunable part, as a value."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from xxhash import xxh3_128

from minitron_nas.errors import ScoresError
from minitron_nas.storage.atomic import whole_folder
from minitron_nas.storage.schemas import SCORES
from minitron_nas.storage.tables import write_rows
from minitron_nas.text.tokens import PackedTokens

_FILE = "scores.safetensors"
_CALIBRATION = "calibration.safetensors"
_ABOUT = "about"
_CHECKSUM = "xxh3"


@dataclass(frozen=True, slots=True)
class ImportanceScores:
    """Importance of every channel, neuron, head, group, expert and layer; higher is more important.

    Where layers are of several kinds, a layer's scores are NaN for what it does not have.

    Attributes:
        hidden: (hidden_size,); one ranking for the whole network.
        neurons: (num_hidden_layers, num_neurons), or (num_hidden_layers, num_experts, num_neurons) where
            `intermediate_size` is what an expert has.
        heads: (num_hidden_layers, num_attention_heads).
        kv_groups: (num_hidden_layers, num_key_value_heads).
        experts: (num_hidden_layers, num_experts); no columns where the family has none.
        layers: (num_hidden_layers,).
        expert_neurons: (num_hidden_layers, num_experts, num_neurons) where experts have a size of their own.
        shared_neurons: (num_hidden_layers, num_neurons), of what every token is sent to beside its experts.
        conv_channels: (num_hidden_layers, hidden_size), of the convolutions of layers that have one.
        mamba_heads: (num_hidden_layers, mamba_num_heads), of Mamba mixers.
        mamba_channels: (num_hidden_layers, mamba_head_dim), of all heads of a Mamba mixer together.
        wide_neurons: (num_hidden_layers, num_neurons), of the FFNs of layers that have no keys of their own.
    """

    hidden: Tensor
    neurons: Tensor
    heads: Tensor
    kv_groups: Tensor
    experts: Tensor
    layers: Tensor
    expert_neurons: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))
    shared_neurons: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    conv_channels: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    mamba_heads: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    mamba_channels: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    wide_neurons: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def save(self, folder: Path, about: dict[str, str], calibration: PackedTokens | None = None) -> None:
        """Write a folder, whole or not at all.

        Args:
            folder: Gets `scores.safetensors`, `scores.parquet` and, if given, `calibration.safetensors`.
            about: Metadata of the scores.
            calibration: The text that they were measured on; lets later steps measure on the same.
        """
        tensors = {each.name: getattr(self, each.name).contiguous() for each in fields(self)}
        with whole_folder(folder) as partial:
            # One entry, because safetensors writes several in any order.
            told = json.dumps({**about, _CHECKSUM: _checksum(tensors)}, sort_keys=True)
            save_file(tensors, partial / _FILE, metadata={_ABOUT: told})
            write_rows(partial, SCORES, self._rows())
            if calibration is not None:
                calibration.save(partial / _CALIBRATION)

    @classmethod
    def load(cls, folder: Path, source: str | None = None) -> Self:
        """Read what `save` wrote.

        Args:
            folder: The folder.
            source: The fingerprint that the scored model has to have.

        Raises:
            ScoresError: If there are no scores that can be read, they are not what was written, or another model's.
        """
        file = folder / _FILE
        if not file.is_file():
            raise ScoresError(
                f"{folder} holds no {_FILE}; give a folder that `minitron-nas score` wrote, or a run's importance/NAME"
            )
        try:
            with safe_open(file, framework="pt") as handle:
                about = json.loads((handle.metadata() or {}).get(_ABOUT, "{}"))
                scored, stored = about.get("source"), set(handle.keys())
                read = [each.name for each in fields(cls) if each.name in stored or each.default_factory is MISSING]
                tensors = {name: handle.get_tensor(name) for name in read}
        except (SafetensorError, ValueError) as error:
            raise ScoresError(f"{file} is cut short or of another version ({error}); score again") from None
        if about.get(_CHECKSUM) != _checksum(tensors):
            raise ScoresError(f"{file} has changed since it was written, or is of another version; score again")
        if source is not None and scored != source:
            raise ScoresError(
                f"{folder} holds the scores of model {scored}, not of this one ({source}); score this one"
            )
        return cls(**tensors)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for each in fields(self):
            scores = getattr(self, each.name)
            for place in itertools.product(*(range(size) for size in scores.shape[:-1])):
                if scores[place].isnan().any():
                    continue
                layer, expert = (*place, None, None)[:2]
                for row in _ranked(scores[place]):
                    yield {"axis": each.name, "layer": layer, "expert": expert, **row}


def load_calibration(folder: Path) -> PackedTokens:
    """Read the text that the scores of a folder were measured on.

    Raises:
        ScoresError: If the folder does not hold it.
        CheckpointError: If it is not what was written there.
    """
    file = folder / _CALIBRATION
    if not file.is_file():
        raise ScoresError(
            f"{folder} holds no {_CALIBRATION}, the text that its scores were measured on; give text with --data too, "
            "or score again with `minitron-nas score`"
        )
    return PackedTokens.load(file, verify=True)


def descending(scores: Tensor) -> Tensor:
    """Return the indices from the most to the least important; equal scores keep their order."""
    return torch.argsort(scores, descending=True, stable=True)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of the scores' bits, in the order of their names."""
    digest = xxh3_128()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _ranked(scores: Tensor) -> Iterator[dict[str, Any]]:
    ranks = torch.argsort(descending(scores)).tolist()
    for index, (score, rank) in enumerate(zip(scores.tolist(), ranks, strict=True)):
        yield {"index": index, "score": score, "rank": rank}


def about_scores(folder: Path) -> dict[str, str]:
    """Return what `save` was told about the scores in a folder.

    Args:
        folder: The folder.

    Raises:
        ScoresError: If it cannot be read.
    """
    try:
        with safe_open(folder / _FILE, framework="pt") as handle:
            about: dict[str, str] = json.loads((handle.metadata() or {}).get(_ABOUT, "{}"))
            about.pop(_CHECKSUM, None)
    except (SafetensorError, ValueError) as error:
        raise ScoresError(f"{folder / _FILE} is cut short or of another version ({error}); score again") from None
    return about
