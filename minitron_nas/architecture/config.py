"""From the content of a `config.json` to a shape, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from minitron_nas.architecture.kinds import is_of
from minitron_nas.architecture.layout import LAYERS_VOCAB, Axis, Layout
from minitron_nas.architecture.rules import require_last_kind
from minitron_nas.architecture.spec import EXPERT_FIELDS, MIXER_FIELDS, Architecture
from minitron_nas.errors import InvalidArchitectureError

_ONLY_WITH = {
    "num_experts": Axis.EXPERTS,
    "num_experts_per_tok": Axis.EXPERTS,
    "moe_intermediate_size": Axis.EXPERT_NEURONS,
    "shared_expert_intermediate_size": Axis.SHARED_NEURONS,
    "num_shared_experts": Axis.SHARED_NEURONS,
    "num_expert_groups": Axis.EXPERTS,
    "num_groups_per_tok": Axis.EXPERTS,
    "max_position_embeddings": Axis.POSITIONS,
    "mamba_num_heads": Axis.MAMBA_GROUP_HEADS,
    "mamba_head_dim": Axis.MAMBA_HEAD_DIM,
    "mamba_num_groups": Axis.MAMBA_GROUPS,
    "double_wide_ffn": Axis.WIDE_NEURONS,
}
"""Fields that are 0 unless some tensor of the family runs along an axis, whatever a config says."""

_OF_GROUPS = ("num_expert_groups", "num_groups_per_tok")
"""Fields that are 0 where the router picks no groups, whatever a config says of them."""

_OF_EXPERTS = (*EXPERT_FIELDS, *_OF_GROUPS, "num_experts_per_tok", "num_shared_experts")
"""Fields that are 0 unless some layer has experts, whatever a config says of them."""

_LATER_LAYERS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
"""Keys of how many layers beside the model predict further tokens at a time; students have none."""

BY_LAYER = "per_layer_config"
"""The key of what a config says of single layers, by their numbers, where that differs."""

_OF_LAYOUT = ("layer_kinds", "fixed_sizes")
"""Fields that are read as the table says, not under names of their own."""


def architecture_of(config: Mapping[str, Any], layout: Layout) -> Architecture:
    """Read a shape from the content of a Hugging Face `config.json`.

    Args:
        config: The content, with all that transformers fills in.
        layout: The table of its family.

    Raises:
        InvalidArchitectureError: If a field that has no default is missing, or the config asks for
            something that the family's table does not describe.
    """
    check_described(config, layout)
    absent = {name for name, axis in _ONLY_WITH.items() if axis not in layout.axes()}
    names = [field.name for field in fields(Architecture) if field.name not in absent and field.name not in _OF_LAYOUT]
    read = {name: _value(config, layout, name) for name in names}
    hidden, heads = read["hidden_size"], read["num_attention_heads"]
    read["num_key_value_heads"] = read["num_key_value_heads"] or heads
    if hidden and heads:
        read["head_dim"] = read["head_dim"] or hidden // heads
        experts = read.get("moe_intermediate_size")
        read["intermediate_size"] = read["intermediate_size"] or layout.ffn_ratio * hidden or experts
    for field in fields(Architecture):
        needed = field.default is MISSING or field.name in MIXER_FIELDS
        if needed and field.name in read and read[field.name] is None:
            raise InvalidArchitectureError(
                f"the config has no {layout.config_names(field.name)[0]!r}; minitron_nas needs a causal language "
                "model's config.json"
            )
    if layout.ffn_width is not None:
        read["intermediate_size"] = layout.ffn_width.read(config, read["intermediate_size"])
    kinds = _kinds(config, layout, read["num_hidden_layers"])
    if not any(layout.has_axis(Axis.EXPERTS, kind) for kind in kinds or ("",)):
        read |= dict.fromkeys(_OF_EXPERTS, 0)
    if any(config.get(key) != value for key, value in layout.groups_when.items()):
        read |= dict.fromkeys(_OF_GROUPS, 0)
    known = {name: value for name, value in read.items() if value is not None}
    shape = Architecture(**known, layer_kinds=kinds, fixed_sizes=_fixed_sizes(config, layout, kinds))
    _require_mixers(shape, layout)
    _require_shared(shape, layout)
    _require_tokens_of_layers(shape)
    _require_experts(shape)
    return shape


def check_described(config: Mapping[str, Any], layout: Layout) -> None:
    """Refuse a config with values that the table of its family does not describe.

    Args:
        config: The content of a `config.json`.
        layout: The table of its family.

    Raises:
        InvalidArchitectureError: With the key, what it has to be and, where the table says so, why.
    """
    for key, accepted in layout.requires.items():
        if (value := config.get(key, accepted[0])) not in accepted:
            raise InvalidArchitectureError(
                f"{key}={value!r} is not described by the table of family {layout.model_type!r}, which needs "
                f"{key}={accepted[0]!r}{f': {layout.reasons[key]}' if key in layout.reasons else ''}"
            )


def with_sizes(config: Mapping[str, Any], target: Architecture, layout: Layout) -> dict[str, Any]:
    """Return a `config.json` with the sizes of another shape and the kinds of its layers, under the names that it has.

    What it says of sizes that the shape does not have, such as those of experts, stays.

    Args:
        config: The content of a `config.json`; it stays as it is.
        target: The other shape.
        layout: The table of the family.
    """
    names = (*layout.shape_fields(), *(() if layout.head_dim_is_derived else ("head_dim",)))
    sizes: dict[str, Any] = {}
    for name in (name for name in names if getattr(target, name)):
        keys = layout.config_names(name)
        present = [key for key in keys if key in config]
        sizes |= dict.fromkeys(present or keys[:1], getattr(target, name))
    if layout.hidden_divides_mixer:
        sizes["mamba_expand"] = target.mamba_channels // target.hidden_size
    if layout.mixer_width:
        sizes[layout.mixer_width] = target.mamba_channels
    if layout.ffn_width is not None:
        sizes |= layout.ffn_width.written()
    kinds = layout.kinds.written(target.layer_kinds) if layout.kinds is not None else {}
    left_out = {key: 0 for key in _LATER_LAYERS if config.get(key)}
    return {**config, **sizes, **kinds, **left_out, **_by_layer(target)}


def _kinds(config: Mapping[str, Any], layout: Layout, num_layers: int) -> tuple[str, ...]:
    if layout.kinds is None:
        return ()
    kinds = layout.kinds.read(config, num_layers)
    _require_known(kinds, layout)
    return kinds


def require_described(shape: Architecture, layout: Layout) -> None:
    """Refuse a shape that somebody wrote down and the table of its family does not describe.

    Args:
        shape: The shape.
        layout: The table.

    Raises:
        InvalidArchitectureError: If a kind of its layers is unknown or missing, a fixed size, or what its mixers have,
            or if transformers takes its last layer for another.
    """
    if (layout.kinds is None) != (not shape.layer_kinds):
        wanted = "none" if layout.kinds is None else f"one of {', '.join(sorted(layout.known_kinds()))} for each layer"
        raise InvalidArchitectureError(
            f"layer_kinds={list(shape.layer_kinds)} is not what family {layout.model_type!r} wants, which is {wanted}"
        )
    _require_known(shape.layer_kinds, layout)
    require_last_kind(shape, layout)
    _require_mixers(shape, layout)
    if missing := sorted((layout.fixed_keys_of(shape.fixed_sizes) | layout.switches()) - {*shape.fixed_sizes}):
        raise InvalidArchitectureError(
            f"fixed_sizes lacks {', '.join(missing)}, by which tensors of family {layout.model_type!r} are there or "
            "not, and how large"
        )
    _require_tokens_of_layers(shape)
    _require_experts(shape)


def _require_mixers(shape: Architecture, layout: Layout) -> None:
    if layout.has_mamba and not shape.mamba_num_heads:
        raise InvalidArchitectureError(
            f"{', '.join(f'{name}=0' for name in MIXER_FIELDS)} is no shape of family {layout.model_type!r}, which has "
            "Mamba mixers; name these sizes beside hidden_size, each at least 1"
        )


def _require_shared(shape: Architecture, layout: Layout) -> None:
    if layout.runs_along(Axis.SHARED_NEURONS, shape) and not shape.num_shared_neurons:
        names = ("shared_expert_intermediate_size", "num_shared_experts")
        key = next(key for name in names for key in layout.config_names(name))
        raise InvalidArchitectureError(
            f"{key}=0 is not described by the table of family {layout.model_type!r}, whose layers with experts have "
            f"shared ones beside them; {key} must be at least 1"
        )


def _require_tokens_of_layers(shape: Architecture) -> None:
    tokens = shape.fixed_sizes.get(LAYERS_VOCAB, shape.vocab_size)
    if tokens < shape.vocab_size:
        raise InvalidArchitectureError(
            f"{LAYERS_VOCAB}={tokens} is below vocab_size={shape.vocab_size}: stock transformers looks embeddings "
            f"of every layer up for all tokens; {LAYERS_VOCAB} must be at least {shape.vocab_size}"
        )


def _require_experts(shape: Architecture) -> None:
    if shape.num_experts < shape.num_experts_per_tok:
        raise InvalidArchitectureError(
            f"num_experts={shape.num_experts} is below num_experts_per_tok={shape.num_experts_per_tok}; a model has at "
            "least as many experts as a token is sent to"
        )


def _require_known(kinds: Sequence[str], layout: Layout) -> None:
    unknown = sorted(set(kinds) - layout.known_kinds()) if layout.kinds is not None else []
    if unknown:
        raise InvalidArchitectureError(
            f"layers of kind {unknown[0]!r} are not described by the table of family {layout.model_type!r}, which "
            f"knows {', '.join(sorted(layout.known_kinds()))}"
        )


def _by_layer(target: Architecture) -> dict[str, Any]:
    """What a config says of layers whose kind has sizes of its own, by the layer's number."""
    own: dict[str, dict[str, int]] = {}
    for key, size in target.fixed_sizes.items():
        kind, dot, name = key.partition(".")
        for layer, of_kind in enumerate(target.layer_kinds if dot else ()):
            if is_of(of_kind, kind):
                own.setdefault(str(layer), {})[name] = size
    return {BY_LAYER: own} if any("." in key for key in target.fixed_sizes) else {}


def _of_kind(config: Mapping[str, Any], kind: str, name: str, kinds: Sequence[str]) -> Any:
    """What the config says of a size of the layers of a kind; nothing where it leaves that to transformers."""
    if BY_LAYER not in config:
        return None
    own = {int(layer): sizes for layer, sizes in config[BY_LAYER].items()}
    found = {own.get(layer, {}).get(name, config.get(name)) for layer, each in enumerate(kinds) if is_of(each, kind)}
    return found.pop() if len(found) == 1 else (0 if not found else None)


def _fixed_sizes(config: Mapping[str, Any], layout: Layout, kinds: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for key in sorted(layout.fixed_keys_of(config)):
        kind, dot, name = key.partition(".")
        size = _of_kind(config, kind, name, kinds) if dot else config.get(key)
        if size is None and not dot and not _is_needed(layout, key, kinds):
            size = 0
        if not isinstance(size, int):
            raise InvalidArchitectureError(
                f"{key}={size!r} must be an integer, as a fixed size of family {layout.model_type!r}; give the config "
                "as transformers fills it in"
            )
        sizes[key] = size
    return sizes | {key: bool(config.get(key, layout.defaults.get(key))) for key in sorted(layout.switches())}


def _is_needed(layout: Layout, key: str, kinds: Sequence[str]) -> bool:
    """Whether some tensor of layers of these kinds has a fixed size; all others may leave it out."""
    rows = (row for row in layout.rows if any(row.in_kind(kind) for kind in kinds or ("",)))
    return any(key in each.fixed_keys for row in rows for each in row.dims)


def _value(config: Mapping[str, Any], layout: Layout, name: str) -> Any:
    if name == "model_type":
        return layout.model_type
    if name == "longrope":
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        return not {"short_factor", "long_factor"}.isdisjoint(rope)
    for key in layout.config_names(name):
        if config.get(key) is not None:
            return _of_all_layers(key, config[key])
    if name == "num_hidden_layers" and layout.kinds is not None:
        return layout.kinds.count(config)
    return layout.defaults.get(name)


def _of_all_layers(key: str, value: Any) -> Any:
    """What a config says of all layers at once, or of each of them the same."""
    if not isinstance(value, list):
        return value
    if not value or any(each != value[0] for each in value):
        raise InvalidArchitectureError(f"{key}={value!r} must be one number, or the same one for every layer")
    return value[0]
