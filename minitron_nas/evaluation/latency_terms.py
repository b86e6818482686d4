"""What time goes to: the terms of a latency model, and the setting that they are measured in."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minitron_nas.architecture.spec import MAMBA_FIELDS
from minitron_nas.settings import Settings

Reals: TypeAlias = NDArray[np.float64]
Columns: TypeAlias = Mapping[str, Any]
"""Integer arrays of one length, by the names of SHAPE_FIELDS; sizes that a family lacks may be left out."""


class Setting(Settings):
    """What a latency model was measured for; a figure holds for nothing else.

    Attributes:
        model_type: The family.
        vocab_size: Of its models.
        head_dim: Channels of a head.
        num_experts_per_tok: Experts that a token is sent to; 0 in families without.
        has_mamba: Whether some layers have a Mamba mixer.
        neurons: The size that counts the neurons of an FFN, or of an expert.
        device: The device's name.
        dtype: Of weights and activations.
        threads: Of a CPU; 0 on other devices.
        batch: Sequences that are read and written together.
        prompt_tokens: Tokens of each sequence in one prefill.
        context_tokens: Tokens before the one that is decoded.
        torch: Its version.
        transformers: Its version.
    """

    model_type: str
    vocab_size: int
    head_dim: int
    num_experts_per_tok: int
    neurons: Literal["intermediate_size", "moe_intermediate_size"]
    device: str
    dtype: str
    threads: int
    batch: int
    prompt_tokens: int
    context_tokens: int
    torch: str
    transformers: str
    has_mamba: bool = False

    @property
    def has_experts(self) -> bool:
        """Whether a layer's FFN consists of experts."""
        return self.num_experts_per_tok > 0


def _heads(columns: Columns, setting: Setting) -> Any:
    return columns["num_attention_heads"] * float(setting.head_dim)


def _groups(columns: Columns, setting: Setting) -> Any:
    return columns["num_key_value_heads"] * float(setting.head_dim)


def _hidden(columns: Columns, _: Setting) -> Any:
    return columns["hidden_size"] * 1.0


def _neurons(columns: Columns, setting: Setting) -> Any:
    return columns[setting.neurons] * 1.0


def _experts(columns: Columns, setting: Setting) -> Any:
    return columns["num_experts"] * 1.0 if setting.has_experts else 0.0


def _mixers(columns: Columns, setting: Setting) -> Any:
    return columns["mamba_num_heads"] * columns["mamba_head_dim"] * 1.0 if setting.has_mamba else 0.0


TERMS: Mapping[str, Callable[[Columns, Setting], Any]] = {
    "constant": lambda columns, _: np.ones(len(columns["hidden_size"])),
    "hidden": _hidden,
    "queries": _heads,
    "keys": _groups,
    "query_weights": lambda columns, setting: _hidden(columns, setting) * _heads(columns, setting),
    "key_weights": lambda columns, setting: _hidden(columns, setting) * _groups(columns, setting),
    "neurons": _neurons,
    "ffn_weights": lambda columns, setting: _hidden(columns, setting) * _neurons(columns, setting),
    "experts": _experts,
    "router_weights": lambda columns, setting: _experts(columns, setting) * _hidden(columns, setting),
    "expert_weights": lambda columns, setting: (
        _experts(columns, setting) * _hidden(columns, setting) * _neurons(columns, setting)
    ),
    "mixers": _mixers,
    "mixer_weights": lambda columns, setting: _hidden(columns, setting) * _mixers(columns, setting),
}
"""What time goes to, per layer: a constant, channels (norms), heads and groups (attention over the context), the
matrices of attention, neurons, the matrices of the FFN or of the experts that a token is sent to, those of all experts,
the channels of Mamba mixers (states), and their matrices. Weights stand for bytes moved and operations alike: for a
fixed batch and length the two are proportional."""

_OF_EXPERTS = ("experts", "router_weights", "expert_weights")
_OF_MIXERS = ("mixers", "mixer_weights")

OUTSIDE_TERMS = ("constant", "hidden")
"""What time goes to once a model: a constant, and the output head, which is as wide as the channels."""


def layer_terms(setting: Setting) -> tuple[str, ...]:
    """Return the names of the terms of a layer of a family."""
    absent = (*(() if setting.has_experts else _OF_EXPERTS), *(() if setting.has_mamba else _OF_MIXERS))
    return tuple(name for name in TERMS if name not in absent)


def layer_sizes(setting: Setting) -> tuple[str, ...]:
    """Return the sizes that the time of a layer depends on, in the words of `SHAPE_FIELDS`."""
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", setting.neurons)
    experts = ("num_experts",) if setting.has_experts else ()
    return (*names, *experts, *(MAMBA_FIELDS if setting.has_mamba else ()))


def sum_of_terms(coefficients: Mapping[str, float], columns: Columns, setting: Setting) -> Reals:
    """Return the seconds of some terms.

    Args:
        coefficients: Seconds for each unit of the terms, by name.
        columns: (num_shapes,) each.
        setting: What was measured.

    Returns:
        (num_shapes,).
    """
    total = np.zeros(len(columns["hidden_size"]))
    for name, seconds in coefficients.items():
        total += seconds * TERMS[name](columns, setting)
    return total
