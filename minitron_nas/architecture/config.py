"""From the content of a `config.json` to a shape, and back."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from minitron_nas.architecture.layout import Axis, Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import InvalidArchitectureError

_ONLY_WITH = {
    "num_experts": Axis.EXPERTS,
    "num_experts_per_tok": Axis.EXPERTS,
    "moe_intermediate_size": Axis.EXPERT_NEURONS,
    "max_position_embeddings": Axis.POSITIONS,
}
"""Fields that are 0 unless some tensor of the family runs along an axis, whatever a config says."""


def architecture_of(config: Mapping[str, Any], layout: Layout) -> Architecture:
    """Read a shape from the content of a Hugging Face `config.json`.

    Args:
        config: The content, with all that transformers fills in.
        layout: The table of its family.

    Raises:
        InvalidArchitectureError: If a field that has no default is missing, or the config asks for
            something that the family's table does not describe.
    """
    for key, accepted in layout.requires.items():
        if (value := config.get(key, accepted[0])) not in accepted:
            raise InvalidArchitectureError(
                f"{key}={value!r} is not described by the table of family {layout.model_type!r}, which needs "
                f"{key}={accepted[0]!r}"
            )
    absent = {name for name, axis in _ONLY_WITH.items() if axis not in layout.axes()}
    names = [field.name for field in fields(Architecture) if field.name not in absent]
    read = {name: _value(config, layout, name) for name in names}
    hidden, heads = read["hidden_size"], read["num_attention_heads"]
    read["num_key_value_heads"] = read["num_key_value_heads"] or heads
    if hidden and heads:
        read["head_dim"] = read["head_dim"] or hidden // heads
        read["intermediate_size"] = read["intermediate_size"] or layout.ffn_ratio * hidden or None
    for field in fields(Architecture):
        if field.default is MISSING and read[field.name] is None:
            raise InvalidArchitectureError(
                f"the config has no {layout.config_names(field.name)[0]!r}; minitron_nas needs a causal language "
                "model's config.json"
            )
    return Architecture(**{name: value for name, value in read.items() if value is not None})


def with_sizes(config: Mapping[str, Any], target: Architecture, layout: Layout) -> dict[str, Any]:
    """Return a `config.json` with the sizes of another shape, under the names that it has for them.

    Args:
        config: The content of a `config.json`; it stays as it is.
        target: The other shape.
        layout: The table of the family.
    """
    names = (*layout.shape_fields(), *(() if layout.head_dim_is_derived else ("head_dim",)))
    sizes: dict[str, Any] = {}
    for name in names:
        keys = layout.config_names(name)
        present = [key for key in keys if key in config]
        sizes |= dict.fromkeys(present or keys[:1], getattr(target, name))
    return {**config, **sizes}


def _value(config: Mapping[str, Any], layout: Layout, name: str) -> Any:
    if name == "model_type":
        return layout.model_type
    if name == "longrope":
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        return not {"short_factor", "long_factor"}.isdisjoint(rope)
    for key in layout.config_names(name):
        if config.get(key) is not None:
            return config[key]
    return layout.defaults.get(name)
