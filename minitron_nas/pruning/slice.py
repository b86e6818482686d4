"""The one surgery: from a prepared teacher to a candidate's tensors, a block of rows at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from minitron_nas.architecture.config import with_sizes
from minitron_nas.architecture.rules import check_architecture
from minitron_nas.architecture.spec import Architecture
from minitron_nas.pruning.compensate import Scaling, scaled_constants, scaling_of
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.storage.weights import TensorHeader, read_rows, row_blocks

Rows: TypeAlias = tuple[int, int]
"""First and last (exclusive) of the student's rows."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cut:
    """How one tensor of a student comes out of the teacher's.

    Attributes:
        name: Of the student's tensor.
        source: Where the teacher's lies.
        kept: For each dimension the teacher's entries that stay, ascending; None where all do.
        scaling: What makes up for constants that depend on a pruned size.
    """

    name: str
    source: TensorHeader
    kept: tuple[Any, ...]
    scaling: Scaling

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the student's tensor."""
        return tuple(
            size if kept is None else len(kept) for size, kept in zip(self.source.shape, self.kept, strict=True)
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the student's tensor."""
        return int(np.prod(self.shape)) * self.source.itemsize

    def blocks(self) -> Iterator[Rows]:
        """Yield the student's rows so that each block comes out of one block of the teacher's."""
        for first, last in row_blocks(self.source):
            if self.kept[0] is not None:
                first, last = np.searchsorted(self.kept[0], (first, last)).tolist()  # noqa: PLW2901
            if first < last:
                yield first, last

    def read(self, rows: Rows) -> Any:
        """Return a block of the student's tensor as a numpy array of the stored bits."""
        kept = self.kept[0]
        if kept is None:
            block = read_rows(self.source, *rows)
        else:
            wanted = kept[slice(*rows)]
            first = int(wanted[0])
            block = read_rows(self.source, first, int(wanted[-1]) + 1)
            if len(block) != len(wanted):
                block = block.take(wanted - first, axis=0)
        for axis, entries in enumerate(self.kept[1:], start=1):
            if entries is not None:
                block = block.take(entries, axis=axis)
        return block if self.scaling.factor == 1 else self._scaled(block)

    def tensor(self) -> Tensor:
        """Return the whole tensor of the student."""
        return torch.from_numpy(self.read((0, self.shape[0]))).view(DTYPES[self.source.dtype])

    def _scaled(self, block: Any) -> Any:
        factor, offset = self.scaling
        dtype = DTYPES[self.source.dtype]
        wide = torch.from_numpy(block).view(dtype).double()
        return ((wide + offset) * factor - offset).to(dtype).view(torch.from_numpy(block).dtype).numpy()


def student_config(prepared: PreparedTeacher, target: Architecture) -> dict[str, Any]:
    """Return the teacher's config with the student's sizes.

    `head_dim` becomes explicit where the family knows it, and lists that hold one entry per layer
    keep the entries of the layers that stay.
    """
    kept_layers = prepared.order.kept_layers(target.num_hidden_layers)
    # A config.json may leave such lists out; what transformers fills in goes by the teacher's layers.
    filled = AutoConfig.for_model(**prepared.config).to_dict()
    per_layer = {
        key: [value[layer] for layer in kept_layers]
        for key, value in filled.items()
        if _is_per_layer(key, value, prepared.architecture)
    }
    constants = scaled_constants(filled, prepared.layout, prepared.architecture, target)
    return with_sizes({**prepared.config, **per_layer, **constants}, target, prepared.layout)


def cuts(prepared: PreparedTeacher, target: Architecture) -> list[Cut]:
    """Return how every tensor of the student is cut, in the order of the family's table."""
    order, source = prepared.order, prepared.architecture
    layers = order.kept_layers(target.num_hidden_layers)
    experts = [order.kept_experts(layer, target.num_experts) for layer in layers] if target.num_experts else []
    result = []
    for place in prepared.layout.tensors(target):
        layer = None if place.layer is None else layers[place.layer]
        expert = None if place.expert is None or place.layer is None else experts[place.layer][place.expert]
        origin = place._replace(name=place.row.name.format(layer=layer, expert=expert), layer=layer, expert=expert)
        kept = [order.kept_entries(dimension, origin, source, target) for dimension in place.row.dims]
        result.append(
            Cut(
                place.name,
                prepared.headers[origin.name],
                tuple(None if entries is None else entries.numpy() for entries in kept),
                scaling_of(place.row, prepared.layout, source, target),
            )
        )
    return result


def build_student(prepared: PreparedTeacher, target: Architecture, dtype: torch.dtype) -> Any:
    """Build the pruned causal LM in memory.

    Args:
        prepared: The ranked teacher.
        target: A shape no larger than the teacher's.
        dtype: Of the weights.

    Raises:
        InvalidArchitectureError: If stock transformers would refuse the shape.
    """
    check_architecture(target, prepared.layout)
    tensors = {cut.name: cut.tensor().to(dtype) for cut in cuts(prepared, target)}
    return model_from_tensors(student_config(prepared, target), tensors, dtype)


def random_student(prepared: PreparedTeacher, target: Architecture, dtype: torch.dtype, seed: int) -> Any:
    """Build the same shape with transformers' own random initialisation, as a baseline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(**student_config(prepared, target))
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def model_from_tensors(config: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """Build a stock causal LM around tensors.

    Raises:
        RuntimeError: If tensors are missing or do not fit; that is a defect of the family table.
    """
    model_config = AutoConfig.for_model(**config)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(model_config, dtype=dtype)
    model, info = type(shell).from_pretrained(
        None, config=model_config, state_dict=tensors, dtype=dtype, output_loading_info=True
    )
    missing = set(info["missing_keys"]) | set(info["unexpected_keys"]) | set(info["mismatched_keys"])
    if missing:
        raise RuntimeError(f"the family table of {model_config.model_type} and transformers disagree on {missing}")
    return model


def total_bytes(all_cuts: Sequence[Cut]) -> int:
    """Bytes of a student's tensors."""
    return sum(cut.num_bytes for cut in all_cuts)


def _is_per_layer(key: str, value: Any, source: Architecture) -> bool:
    return isinstance(value, list) and "layer" in key and len(value) == source.num_hidden_layers
