"""Rotary positions of a GGUF file, from its keys and its tensors."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_nas.errors import CheckpointError
from minitron_nas.models.gguf_file import GgufFile, short

FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_TENSORS = frozenset({FREQUENCIES, LONG, SHORT})

_DEFAULT_BASE = 10000.0  # llama.cpp's, for every architecture
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_CONTEXTS = tuple(2**power for power in (13, *range(5, 13), *range(14, 21)))
"""Lengths that a llama3 scaling may have begun from, the one of Llama 3.1 and 3.2 first."""

_TOLERANCE = 1e-4
_YARN = {
    "rope.scaling.yarn_beta_fast": "beta_fast", "rope.scaling.yarn_beta_slow": "beta_slow",
}  # fmt: skip


def rope_parameters(file: GgufFile, keys: dict[str, Any], dim: int, length: int) -> dict[str, Any]:
    """Return the `rope_parameters` of a file, in transformers' words.

    Args:
        file: The file.
        keys: What it says of its architecture; the keys that were used are taken out.
        dim: How many dimensions of a head are rotated.
        length: The longest context.

    Raises:
        CheckpointError: If a tensor or key describes positions that transformers cannot express.
    """
    found: dict[str, Any] = {"rope_theta": float(keys.pop("rope.freq_base", _DEFAULT_BASE))}
    keys.pop("rope.scaling.finetuned", None)  # how the model came about
    kind = keys.pop("rope.scaling.type", None) or "linear"  # as llama.cpp takes it
    factors = [keys.pop(key, 0) for key in ("rope.scaling.factor", "rope.scale_linear")]
    factor = 1.0 if kind == "none" else float(factors[0] or factors[1] or 1)
    attention = float(keys.pop("rope.scaling.attn_factor", 0) or 1)
    original = keys.pop("rope.scaling.original_context_length", None)
    if FREQUENCIES in file.tensors:
        if factor != 1:
            raise _refused(file, f"both rope.scaling.factor={factor} and the tensor {FREQUENCIES}")
        return found | _of_frequencies(file, found["rope_theta"], dim)
    if {LONG, SHORT} & file.tensors.keys():
        lists = {"short_factor": _factors(file, SHORT, dim), "long_factor": _factors(file, LONG, dim)}
        return found | {"rope_type": "longrope", **lists, **_longrope(length, original or length, attention)}
    if kind == "yarn":
        steep = {name: float(keys.pop(key)) for key, name in _YARN.items() if keys.get(key)}
        if attention != 1:
            steep["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
        begun = {"original_max_position_embeddings": int(original or length)}
        return found | {"rope_type": "yarn", "factor": factor, **begun, **steep}
    if kind not in {"none", "linear"} or attention != 1:
        raise _refused(file, f"rope.scaling.type={kind!r} with rope.scaling.attn_factor={attention}")
    return found | ({"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"})


def _longrope(length: int, original: int, attention: float) -> dict[str, Any]:
    """What longrope needs beside its factors; the factor of attention where it is not the one of the paper."""
    factor = length / original
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    unusual = {} if math.isclose(attention, usual, rel_tol=_TOLERANCE) else {"attention_factor": attention}
    return {"original_max_position_embeddings": int(original), **unusual}


def _of_frequencies(file: GgufFile, base: float, dim: int) -> dict[str, Any]:
    """The scaling that divides frequencies by the factors of a tensor: none, one for all, or llama3's."""
    divisors = np.array(_factors(file, FREQUENCIES, dim))
    if np.allclose(divisors, divisors[0], rtol=_TOLERANCE):
        factor = float(divisors[0])
        same = math.isclose(factor, 1.0, rel_tol=_TOLERANCE)
        return {"rope_type": "default"} if same else {"rope_type": "linear", "factor": factor}
    for context in _CONTEXTS:
        scaling = {"factor": short(float(divisors.max())), **_LLAMA3, "original_max_position_embeddings": context}
        if np.allclose(_llama3(scaling, base, dim), divisors, rtol=_TOLERANCE):
            return {"rope_type": "llama3", **scaling}
    raise _refused(file, f"the tensor {FREQUENCIES}, whose {len(divisors)} factors are not those of a llama3 scaling")


def _llama3(scaling: Mapping[str, float], base: float, dim: int) -> NDArray[np.float64]:
    """What llama3's scaling divides each frequency by."""
    lengths = 2 * math.pi * base ** (np.arange(0, dim, 2) / dim)
    turns, low, high = scaling["original_max_position_embeddings"] / lengths, *_LLAMA3.values()
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    divisors: NDArray[np.float64] = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    return divisors


def _factors(file: GgufFile, name: str, dim: int) -> list[float]:
    if name not in file.tensors:
        raise _refused(file, f"no tensor {name}, but its counterpart")
    values = file.tensors[name].values().ravel()
    if len(values) != dim // 2 or not np.all(values > 0):
        raise _refused(file, f"the tensor {name} with {len(values)} factors, where {dim // 2} above 0 are needed")
    return [short(float(value)) for value in values]


def _refused(file: GgufFile, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file.path} has {what}; minitron_nas cannot express these rotary positions in transformers: give a "
        "safetensors folder of the model"
    )
