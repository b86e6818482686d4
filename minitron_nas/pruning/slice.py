"""From a prepared teacher to a candidate: prefix slices, read lazily."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from minitron_nas.architecture.rules import check_architecture
from minitron_nas.architecture.spec import SHAPE_FIELDS, Architecture
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.storage.weights import Weights, open_weights


def student_config(prepared: PreparedTeacher, target: Architecture) -> dict[str, Any]:
    """Return the teacher's config with the student's sizes.

    `head_dim` becomes explicit, and lists that hold one entry per layer keep the entries of the
    layers that stay.
    """
    kept_layers = prepared.order.kept_layers(target.num_hidden_layers)
    # A config.json may leave such lists out; what transformers fills in goes by the teacher's layers.
    filled = AutoConfig.for_model(**prepared.config).to_dict()
    per_layer = {
        key: [value[layer] for layer in kept_layers]
        for key, value in filled.items()
        if _is_per_layer(key, value, prepared.architecture)
    }
    sizes = {name: getattr(target, name) for name in (*SHAPE_FIELDS, "head_dim")}
    return prepared.config | per_layer | sizes


def student_tensors(prepared: PreparedTeacher, target: Architecture) -> Iterator[tuple[str, Tensor]]:
    """Yield the student's tensors one by one, each cut from the sorted teacher."""
    kept_layers = prepared.order.kept_layers(target.num_hidden_layers)
    with open_weights(prepared.path) as weights:
        for name, row, layer in prepared.layout.tensors(target):
            source_layer = kept_layers[layer] if layer is not None else 0
            source_name = row.name.format(layer=source_layer)
            indices = [
                prepared.order.kept_indices(dim, source_layer, prepared.architecture, target) for dim in row.dims
            ]
            yield name, _read(weights, source_name, indices)


def build_student(prepared: PreparedTeacher, target: Architecture, dtype: torch.dtype) -> Any:
    """Build the pruned causal LM in memory.

    Args:
        prepared: The sorted teacher.
        target: A shape no larger than the teacher's.
        dtype: Of the weights.

    Raises:
        InvalidArchitectureError: If stock transformers would refuse the shape.
    """
    check_architecture(target, prepared.layout)
    tensors = {name: tensor.to(dtype) for name, tensor in student_tensors(prepared, target)}
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


def _read(weights: Weights, name: str, indices: list[Tensor | None]) -> Tensor:
    """Read the prefix that holds the wanted entries, then pick them."""
    view = weights.slice(name)
    prefix = tuple(slice(None) if kept is None else slice(0, int(kept.max()) + 1) for kept in indices)
    tensor: Tensor = view[prefix]
    for axis, kept in enumerate(indices):
        if kept is not None:
            tensor = tensor.index_select(axis, kept)
    return tensor.contiguous()


def _is_per_layer(key: str, value: Any, source: Architecture) -> bool:
    return isinstance(value, list) and "layer" in key and len(value) == source.num_hidden_layers
