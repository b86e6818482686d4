"""From stored tensors to stock causal LMs."""

import copy
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from minitron_nas.architecture.layout import stored_tensor
from minitron_nas.models.attention import attend_by_document
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.storage.weights import TensorHeader, read_rows, row_blocks

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
"""The floating-point types of safetensors."""

_KINDS = "layer_types"

Bits: TypeAlias = NDArray[np.signedinteger[Any]]
"""Stored numbers of any type, as signed integers of the same width."""


def read_tensor(header: TensorHeader) -> Tensor:
    """Read all of a stored tensor, in the type that it is stored in."""
    rows = torch.from_numpy(read_rows(header, 0, header.num_rows))
    return rows.view(DTYPES[header.dtype]).view(header.shape)


def read_entries(header: TensorHeader, indices: Tensor) -> Tensor:
    """Read some entries of a stored tensor's first dimension, never holding more than a block of the others.

    Args:
        header: Where the tensor lies.
        indices: (num_kept,), ascending.

    Returns:
        (num_kept, ...), in the type that the tensor is stored in.
    """
    wanted = indices.numpy()
    pieces = [np.empty((0, *header.shape[1:]), f"i{header.itemsize}")]
    for first, last in row_blocks(header):
        begin, end = np.searchsorted(wanted, (first, last)).tolist()
        if begin < end:
            pieces.append(read_rows(header, first, last)[wanted[begin:end] - first])
    return torch.from_numpy(np.concatenate(pieces)).view(DTYPES[header.dtype])


def filled_config(content: Mapping[str, Any]) -> PreTrainedConfig:
    """Return transformers' config of a model, with the kinds of layers that its content says.

    transformers takes the last layer of Gemma 4 for one that sees everything, whatever the content says. Models of a
    few layers are built here that end otherwise, to measure or compare those.

    Args:
        content: The content of a `config.json`; it stays as it is.
    """
    config = AutoConfig.for_model(**copy.deepcopy(dict(content)))
    said, own = list(content.get(_KINDS) or ()), list(getattr(config, _KINDS, None) or ())
    if said[-1:] == ["sliding_attention"] and own == [*said[:-1], "full_attention"]:
        setattr(config, _KINDS, said)
    return config


def model_from_tensors(config: dict[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> CausalLM:
    """Build a stock causal LM around tensors.

    Args:
        config: The content of its `config.json`.
        tensors: By the names of its family's table.
        dtype: Of its weights.

    Raises:
        RuntimeError: If tensors are missing or do not fit; that is a defect of the family table.
    """
    model_config = filled_config(config)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(model_config, dtype=dtype)
    model: CausalLM
    model, info = type(shell).from_pretrained(
        None, config=model_config, state_dict=_stacked(tensors), dtype=dtype, output_loading_info=True
    )
    missing = set(info["missing_keys"]) | set(info["unexpected_keys"]) | set(info["mismatched_keys"])
    if missing:
        raise RuntimeError(f"the family table of {model_config.model_type} and transformers disagree on {missing}")
    attend_by_document(model)
    return model


def _stacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as a file holds them: the slices of a stack, which follow one another, as one."""
    groups: dict[str, list[str]] = {}
    for name in tensors:
        groups.setdefault(stored_tensor(name), []).append(name)
    return {
        stack: tensors[stack] if names == [stack] else torch.stack([tensors[name] for name in names])
        for stack, names in groups.items()
    }
