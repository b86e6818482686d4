"""Rules that a shape must keep, each with its reason, vectorised over arrays of candidates."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from minitron_nas.architecture.kinds import fewest_layers, without_keys
from minitron_nas.architecture.layout import MAMBA_CHANNELS, Axis, Layout, Sizes, axis_sizes
from minitron_nas.architecture.spec import MAMBA_FIELDS, Architecture
from minitron_nas.errors import InvalidArchitectureError

EXPERT_GRAIN = 8
"""Rows of this many 16-bit numbers fill the 16 bytes that grouped matrix products work on."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A named condition on axis sizes.

    Attributes:
        name: A short identifier; it is the key of the table of left-out candidates.
        reason: Why the rule exists.
        applies: Whether a family is bound by it.
        keeps: From axis sizes (scalars or arrays) and the source to truth values.
        blames: The fields of a shape by which it breaks the rule.
        nearest: What to choose instead of a shape that breaks the rule.
    """

    name: str
    reason: str
    applies: Callable[[Layout], bool]
    keeps: Callable[[Sizes, Architecture], Any]
    blames: Callable[[Architecture], tuple[str, ...]]
    nearest: Callable[[Architecture], str]


def _heads(sizes: Sizes) -> Any:
    return sizes[Axis.KV_GROUPS] * sizes[Axis.GROUP_HEADS]


def _picked_groups(shape: Architecture) -> int:
    return shape.num_groups_per_tok or max(1, shape.num_expert_groups)


def _around(name: str, size: int, step: int) -> str:
    nearest = {size // step * step, -(-size // step) * step}
    return f"{name}: {' or '.join(str(legal) for legal in sorted(nearest) if legal)}"


def _unaligned(shape: Architecture) -> tuple[str, ...]:
    return tuple(name for name in ("hidden_size", shape.ffn_field) if getattr(shape, name) % EXPERT_GRAIN)


def _dividing(shape: Architecture) -> str:
    channels = shape.mamba_channels
    below = next(size for size in range(shape.hidden_size, 0, -1) if channels % size == 0)
    above = next((size for size in range(shape.hidden_size, channels) if channels % size == 0), channels)
    return f"hidden_size: {' or '.join(str(legal) for legal in sorted({below, above}))}"


RULES = (
    Rule(
        "hidden_size_multiple_of_heads",
        "stock transformers refuses a config whose hidden_size is no multiple of num_attention_heads",
        lambda layout: layout.hidden_multiple_of_heads,
        lambda sizes, source: sizes[Axis.HIDDEN] % _heads(sizes) == 0,
        lambda shape: ("hidden_size", "num_attention_heads"),
        lambda shape: _around("hidden_size", shape.hidden_size, shape.num_attention_heads),
    ),
    Rule(
        "hidden_size_fills_heads",
        "the family has no head_dim of its own: hidden_size must be num_attention_heads times the teacher's head_dim",
        lambda layout: layout.head_dim_is_derived,
        lambda sizes, source: sizes[Axis.HIDDEN] == _heads(sizes) * sizes[Axis.HEAD_DIM],
        lambda shape: ("hidden_size", "num_attention_heads"),
        lambda shape: f"hidden_size: {shape.num_attention_heads * shape.head_dim}",
    ),
    Rule(
        "hidden_size_divides_mixer",
        "stock transformers wants the channels of a Mamba mixer, those of all its heads, to be a whole number of times "
        "hidden_size (mamba_expand)",
        lambda layout: layout.hidden_divides_mixer,
        lambda sizes, source: MAMBA_CHANNELS.size(sizes) % sizes[Axis.HIDDEN] == 0,
        lambda shape: ("hidden_size", *MAMBA_FIELDS),
        _dividing,
    ),
    Rule(
        "longrope_fixes_channels_per_head",
        "the lists short_factor and long_factor of rope_parameters fix hidden_size // num_attention_heads at head_dim: "
        "stock transformers refuses a config in which they have another length than this ratio asks for",
        lambda layout: layout.longrope_follows_heads,
        lambda sizes, source: (not source.longrope) | (sizes[Axis.HIDDEN] // _heads(sizes) == sizes[Axis.HEAD_DIM]),
        lambda shape: ("hidden_size", "num_attention_heads"),
        lambda shape: f"hidden_size: {shape.num_attention_heads * shape.head_dim} (num_attention_heads * head_dim)",
    ),
    Rule(
        "experts_cover_a_token",
        "a token is sent to num_experts_per_tok experts, so that many have to be left",
        lambda layout: layout.has_experts,
        lambda sizes, source: sizes[Axis.EXPERTS] >= source.num_experts_per_tok,
        lambda shape: ("num_experts", "num_experts_per_tok"),
        lambda shape: f"num_experts: {shape.num_experts_per_tok}",
    ),
    Rule(
        "experts_fill_their_groups",
        "the router picks groups of experts by the best two of each before it picks experts, so that all groups must "
        "have equally many, at least two",
        lambda layout: layout.has_experts,
        lambda sizes, source: (
            (sizes[Axis.EXPERTS] % max(1, source.num_expert_groups) == 0)
            & (sizes[Axis.EXPERTS] >= 2 * source.num_expert_groups)
        ),
        lambda shape: ("num_experts",),
        lambda shape: _around(
            "num_experts", max(shape.num_experts, 2 * shape.num_expert_groups), shape.num_expert_groups
        ),
    ),
    Rule(
        "picked_groups_cover_a_token",
        "a token is sent to num_experts_per_tok experts of the groups that the router picks for it (topk_group), which "
        "have to hold as many",
        lambda layout: layout.has_experts,
        lambda sizes, source: (
            sizes[Axis.EXPERTS] // max(1, source.num_expert_groups) * _picked_groups(source)
            >= source.num_experts_per_tok
        ),
        lambda shape: ("num_experts", "num_experts_per_tok"),
        lambda shape: (
            f"num_experts: {-(-shape.num_experts_per_tok // _picked_groups(shape)) * max(1, shape.num_expert_groups)}"
        ),
    ),
    Rule(
        "expert_matrices_aligned",
        "stock transformers computes experts with grouped matrix products, whose rows must fill 16 bytes: hidden_size "
        f"and the experts' width must be multiples of {EXPERT_GRAIN}",
        lambda layout: layout.has_experts,
        lambda sizes, source: (
            (source.num_experts == 0)
            | ((sizes[Axis.HIDDEN] % EXPERT_GRAIN == 0) & (sizes[source.ffn_field] % EXPERT_GRAIN == 0))
        ),
        _unaligned,
        lambda shape: "; ".join(_around(name, getattr(shape, name), EXPERT_GRAIN) for name in _unaligned(shape)),
    ),
)


def check_architecture(architecture: Architecture, layout: Layout) -> None:
    """Refuse a shape that stock transformers would refuse, or would read otherwise than it is meant.

    Args:
        architecture: The shape.
        layout: The table of its family; says which rules apply.

    Raises:
        InvalidArchitectureError: With the rule, its reason and the nearest legal sizes.
    """
    require_attention(architecture, layout)
    sizes = axis_sizes(architecture)
    for rule in RULES:
        if rule.applies(layout) and not rule.keeps(sizes, architecture):
            blamed = " with ".join(f"{name}={getattr(architecture, name)}" for name in rule.blames(architecture))
            raise InvalidArchitectureError(
                f"{blamed} breaks the rule {rule.name}: {rule.reason}; nearest legal {rule.nearest(architecture)}"
            )


def require_attention(architecture: Architecture, layout: Layout) -> None:
    """Refuse a shape of which stock transformers could not generate: one whose layers all hand on states.

    Args:
        architecture: The shape.
        layout: The table of its family.

    Raises:
        InvalidArchitectureError: Naming the kinds of layers of which one has to stay.
    """
    if not layout.hands_on_state or not architecture.layer_kinds:
        return
    attention = _kinds_with_attention(layout)
    if attention.isdisjoint(architecture.layer_kinds):
        raise InvalidArchitectureError(
            f"none of the {architecture.num_hidden_layers} layers has attention, and only of such a layer stock "
            f"transformers learns how long its context is when it generates; keep a layer of kind "
            f"{' or '.join(sorted({kind.partition(' ')[0] for kind in attention}))}"
        )


def require_keys(architecture: Architecture) -> None:
    """Refuse a shape some of whose layers read keys and values that none of its layers computes.

    Args:
        architecture: The shape, with the kinds that its layers have in the source.

    Raises:
        InvalidArchitectureError: Naming how these layers attend, and what to do.
    """
    if lacking := without_keys(architecture.layer_kinds):
        raise InvalidArchitectureError(
            f"layers of kind {lacking[0]!r} have no keys and values of their own, and the layer that they read them "
            "from is not there; keep that layer (the last before all such layers that attends as they do), or drop "
            "them, too"
        )


def fewest_with_attention(architecture: Architecture, layout: Layout) -> int:
    """Return the fewest layers of which `require_attention` takes a model of fewer layers than this.

    Args:
        architecture: The source's shape.
        layout: The table of its family.
    """
    kinds, attention = architecture.layer_kinds, _kinds_with_attention(layout)
    if not layout.hands_on_state or not kinds:
        return 1
    return min(fewest_layers(kinds, {kinds.index(kind)}) for kind in attention & set(kinds))


def _kinds_with_attention(layout: Layout) -> set[str]:
    return {kind for kinds, _, _ in layout.attentions() for kind in kinds}


def check_changes(names: Iterable[str], source: Architecture, layout: Layout) -> None:
    """Refuse sizes that no tensor of a model runs along.

    Args:
        names: Sizes, as users name them.
        source: The model's shape.
        layout: The table of its family.

    Raises:
        InvalidArchitectureError: Naming the size and those that the family, or the model, has.
    """
    own = layout.shape_fields_of(source)
    for name in names:
        if name not in layout.shape_fields():
            raise InvalidArchitectureError(
                f"{name!r} is not a prunable size of family {layout.model_type!r}; choose from "
                f"{', '.join(layout.shape_fields())}"
            )
        if name not in own:
            raise InvalidArchitectureError(
                f"{name!r} is the size of nothing in this model, whose layers are of kind "
                f"{', '.join(sorted(set(source.kinds)))}; choose from {', '.join(own)}"
            )
