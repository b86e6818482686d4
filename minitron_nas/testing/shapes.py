"""Shapes that a family table is tried on."""

from math import lcm

from minitron_nas.architecture.layout import NEURON_AXES, Axis, Layout
from minitron_nas.architecture.rules import EXPERT_GRAIN
from minitron_nas.architecture.spec import MAMBA_FIELDS, Architecture

_NEURONS = {
    "intermediate_size": NEURON_AXES[Axis.NEURONS],
    "moe_intermediate_size": NEURON_AXES[Axis.EXPERT_NEURONS],
    "shared_expert_intermediate_size": NEURON_AXES[Axis.SHARED_NEURONS],
}
"""What the neurons are called of which a field of `Architecture` is the number."""


def conformance_shapes(layout: Layout, source: Architecture) -> dict[str, dict[str, int]]:
    """Return shapes that prune every axis of a family alone, and all of them together, by name.

    Args:
        layout: The table of the family.
        source: The teacher's shape.
    """
    grain = EXPERT_GRAIN if source.num_experts else 1
    units = unit_shapes(layout, source)
    parts = (*NEURON_AXES.values(), "experts", *(() if layout.hidden_divides_mixer else MAMBA_FIELDS))
    fewer = {name: size for part in parts for name, size in units.get(part, {}).items()}
    fewer = {name: size // grain * grain if size >= grain else size for name, size in fewer.items()}
    fewer["num_hidden_layers"] = source.num_hidden_layers - 1
    shapes = {name: {name: size} for name, size in fewer.items()}
    groups, heads = _fewer_groups(layout, source), units.get("heads")
    if layout.head_dim_is_derived or (layout.longrope_follows_heads and source.longrope):
        follow = {"heads": heads, "groups": groups} if heads is not None else {"groups": groups}
        together = {
            f"{name}_and_hidden_size": {**each, "hidden_size": each["num_attention_heads"] * source.head_dim}
            for name, each in follow.items()
        }
        return {**shapes, **together, "all": {**fewer, **together["groups_and_hidden_size"]}}
    if not offers_heads(layout):
        groups = heads = {}
    elif heads is None:
        shapes["num_key_value_heads"] = groups
    else:
        shapes |= {"num_key_value_heads": groups, "num_attention_heads": heads}
    if layout.hidden_divides_mixer:
        of_mixers = {name: units[name] for name in MAMBA_FIELDS if name in units}  # there may be no mixer
        mixers = {name: _narrower(source, sizes, grain) for name, sizes in of_mixers.items()}
        both = {name: size for sizes in of_mixers.values() for name, size in sizes.items()}
        every = {**fewer, **(heads or groups), **_narrower(source, both, grain)}
        return {**shapes, **mixers, "hidden_size": _narrower(source, {}, grain), "all": every}
    step = lcm(grain, source.num_attention_heads) if layout.hidden_multiple_of_heads else grain
    shapes["hidden_size"] = {"hidden_size": _below(source.hidden_size, step)}
    kept = heads or groups
    step = lcm(grain, kept["num_attention_heads"]) if layout.hidden_multiple_of_heads else grain
    return {**shapes, "all": {**fewer, **kept, "hidden_size": _below(source.hidden_size * 3 // 4, step)}}


def unit_shapes(layout: Layout, source: Architecture) -> dict[str, dict[str, int]]:
    """Return shapes that take units away from one axis each, whether or not transformers would take the shape.

    Args:
        layout: The table of the family.
        source: The teacher's shape.
    """
    groups, in_group = source.num_key_value_heads, source.heads_per_group
    shapes = {
        **{
            part: {size: getattr(source, size) * 5 // 8 - 1}
            for size, part in _NEURONS.items()
            if size in layout.shape_fields_of(source)
        },
        "groups": {"num_key_value_heads": groups - 1, "num_attention_heads": (groups - 1) * in_group},
        "channels": {"hidden_size": source.hidden_size * 3 // 4},
    }
    if not offers_heads(layout):
        del shapes["groups"]
    if offers_heads(layout) and in_group > 1:
        shapes["heads"] = {"num_attention_heads": groups * (in_group - 1)}
    if any(layout.is_of_all_layers(row) and row.exists(source) for row in layout.rows):
        shapes["layers"] = {"num_hidden_layers": source.num_hidden_layers - 1}
    if layout.runs_along(Axis.MAMBA_HEAD_DIM, source):
        narrow = source.mamba_head_dim * 3 // 4
        shapes["mamba_num_heads"] = {"mamba_num_heads": _fewer_mamba_heads(layout, source, narrow)}
        shapes["mamba_head_dim"] = {"mamba_head_dim": narrow}
    if source.num_experts:
        fewer = source.num_experts - max(1, source.num_expert_groups)
        if fewer >= source.num_experts_per_tok:
            shapes["experts"] = {"num_experts": fewer}
    return shapes


def offers_heads(layout: Layout) -> bool:
    """Whether attention's sizes are among those that can be pruned."""
    return "num_attention_heads" in layout.shape_fields()


def _fewer_mamba_heads(layout: Layout, source: Architecture, head_dim: int) -> int:
    """As many heads of a mixer as can be kept without all being kept.

    Where `hidden_size` divides the channels of all heads, and experts take it in steps, so must these, of whatever size
    the heads are.
    """
    grain = EXPERT_GRAIN if layout.hidden_divides_mixer and source.num_experts else 1
    groups = source.mamba_num_groups
    most = source.mamba_num_heads - groups
    return next((heads for heads in range(most, 0, -groups) if heads * head_dim % grain == 0), most)


def _fewer_groups(layout: Layout, source: Architecture) -> dict[str, int]:
    """As many KV groups as can be kept without all being kept."""
    in_group = source.heads_per_group
    groups = next(
        count
        for count in range(source.num_key_value_heads - 1, 0, -1)
        if not layout.hidden_multiple_of_heads or source.hidden_size % (count * in_group) == 0
    )
    return {"num_key_value_heads": groups, "num_attention_heads": groups * in_group}


def _narrower(source: Architecture, mixers: dict[str, int], grain: int) -> dict[str, int]:
    """Return sizes of mixers with the next smaller number of channels that divides theirs, in steps of a grain."""
    channels, widest = source.reshaped(mixers).mamba_channels, (source.hidden_size - 1) // grain * grain
    return {**mixers, "hidden_size": next(n for n in range(widest, 0, -grain) if channels % n == 0)}


def _below(size: int, step: int) -> int:
    """The next multiple of a step below a size."""
    return (size - 1) // step * step
