"""Rules that a shape must keep, each with its reason, vectorised over arrays of candidates."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitron_nas.architecture.kinds import fewest_layers, first_word, is_of, without_keys
from minitron_nas.architecture.layout import MAMBA_CHANNELS, Axis, Layout, Sizes, axis_sizes
from minitron_nas.architecture.spec import MAMBA_FIELDS, Architecture
from minitron_nas.errors import InvalidArchitectureError

EXPERT_GRAIN = 8
"""Rows of this many 16-bit numbers fill the 16 bytes that grouped matrix products work on."""

_LATENTS = "moe_latent_size"
"""The key of how many latents experts read and write instead of hidden channels, where they do."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A named condition on axis sizes.

    Attributes:
        name: A short identifier; it is the key of the table of left-out candidates.
        reason: Why the rule exists.
        applies: Whether a family is bound by it.
        keeps: From axis sizes (scalars or arrays) and the source to truth values.
        blames: The fields of a shape by which it breaks the rule.
        advises: The sizes of a shape of which another would keep the rule; each can be chosen for itself.
    """

    name: str
    reason: str
    applies: Callable[[Layout], bool]
    keeps: Callable[[Sizes, Architecture], Any]
    blames: Callable[[Architecture], tuple[str, ...]]
    advises: Callable[[Architecture], tuple[str, ...]]


def _heads(sizes: Sizes) -> Any:
    return sizes[Axis.KV_GROUPS] * sizes[Axis.GROUP_HEADS]


def _picked_groups(shape: Architecture) -> int:
    return shape.num_groups_per_tok or max(1, shape.num_expert_groups)


def _of_expert_matrices(shape: Architecture) -> tuple[str, ...]:
    """The sizes that pruning changes and experts' matrices run along; where latents are read, hidden ones are not."""
    return (shape.ffn_field,) if shape.fixed_sizes.get(_LATENTS) else ("hidden_size", shape.ffn_field)


def _unaligned(shape: Architecture) -> tuple[str, ...]:
    return tuple(name for name in _of_expert_matrices(shape) if getattr(shape, name) % EXPERT_GRAIN)


def _are_aligned(sizes: Sizes, source: Architecture) -> Any:
    return sum(sizes[name] % EXPERT_GRAIN for name in _of_expert_matrices(source)) == 0


def _hidden_size(_: Architecture) -> tuple[str, ...]:
    return ("hidden_size",)


def _num_experts(_: Architecture) -> tuple[str, ...]:
    return ("num_experts",)


RULES = (
    Rule(
        "hidden_size_multiple_of_heads",
        "stock transformers refuses a config whose hidden_size is no multiple of num_attention_heads",
        lambda layout: layout.hidden_multiple_of_heads,
        lambda sizes, source: sizes[Axis.HIDDEN] % _heads(sizes) == 0,
        lambda shape: ("hidden_size", "num_attention_heads"),
        _hidden_size,
    ),
    Rule(
        "hidden_size_fills_heads",
        "the family has no head_dim of its own: hidden_size must be num_attention_heads times the teacher's head_dim",
        lambda layout: layout.head_dim_is_derived,
        lambda sizes, source: sizes[Axis.HIDDEN] == _heads(sizes) * sizes[Axis.HEAD_DIM],
        lambda shape: ("hidden_size", "num_attention_heads"),
        _hidden_size,
    ),
    Rule(
        "hidden_size_divides_mixer",
        "stock transformers wants the channels of a Mamba mixer, those of all its heads, to be a whole number of times "
        "hidden_size (mamba_expand)",
        lambda layout: layout.hidden_divides_mixer,
        lambda sizes, source: MAMBA_CHANNELS.size(sizes) % sizes[Axis.HIDDEN] == 0,
        lambda shape: ("hidden_size", *MAMBA_FIELDS),
        _hidden_size,
    ),
    Rule(
        "longrope_fixes_channels_per_head",
        "the lists short_factor and long_factor of rope_parameters fix hidden_size // num_attention_heads at head_dim: "
        "stock transformers refuses a config in which they have another length than this ratio asks for",
        lambda layout: layout.longrope_follows_heads,
        lambda sizes, source: (not source.longrope) | (sizes[Axis.HIDDEN] // _heads(sizes) == sizes[Axis.HEAD_DIM]),
        lambda shape: ("hidden_size", "num_attention_heads"),
        _hidden_size,
    ),
    Rule(
        "experts_cover_a_token",
        "a token is sent to num_experts_per_tok experts, so that many have to be left",
        lambda layout: layout.has_experts,
        lambda sizes, source: sizes[Axis.EXPERTS] >= source.num_experts_per_tok,
        lambda shape: ("num_experts", "num_experts_per_tok"),
        _num_experts,
    ),
    Rule(
        "experts_fill_their_groups",
        "the router picks groups of experts before it picks experts, so that all groups must have equally many",
        lambda layout: layout.has_experts,
        lambda sizes, source: sizes[Axis.EXPERTS] % max(1, source.num_expert_groups) == 0,
        lambda shape: ("num_experts",),
        _num_experts,
    ),
    Rule(
        "groups_hold_their_best_two",
        "the router ranks groups of experts by the two best of each, so that each must have at least two",
        lambda layout: layout.has_experts and not layout.ranks_groups_by_best,
        lambda sizes, source: sizes[Axis.EXPERTS] >= 2 * source.num_expert_groups,
        lambda shape: ("num_experts",),
        _num_experts,
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
        _num_experts,
    ),
    Rule(
        "expert_matrices_aligned",
        "stock transformers computes experts with grouped matrix products, whose rows must fill 16 bytes: what experts "
        f"read and their width must be multiples of {EXPERT_GRAIN}",
        lambda layout: layout.has_experts,
        lambda sizes, source: (source.num_experts == 0) | _are_aligned(sizes, source),
        _unaligned,
        _of_expert_matrices,
    ),
)


def check_architecture(architecture: Architecture, layout: Layout, source: Architecture | None = None) -> None:
    """Refuse a shape that stock transformers would refuse, or would read otherwise than it is meant.

    Args:
        architecture: The shape.
        layout: The table of its family; says which rules apply.
        source: The shape that it is pruned from, where it is: no larger sizes are advised.

    Raises:
        InvalidArchitectureError: With the rule, its reason and the nearest legal sizes.
    """
    require_attention(architecture, layout)
    sizes = axis_sizes(architecture)
    for rule in RULES:
        if rule.applies(layout) and not rule.keeps(sizes, architecture):
            blamed = " with ".join(f"{name}={getattr(architecture, name)}" for name in rule.blames(architecture))
            raise InvalidArchitectureError(
                f"{blamed} breaks the rule {rule.name}: {rule.reason}; {_advice(rule, architecture, layout, source)}"
            )


def _advice(rule: Rule, shape: Architecture, layout: Layout, source: Architecture | None) -> str:
    """Say which sizes to choose instead of those by which a shape breaks a rule; no other rule refuses these."""
    nearest, none = [], []
    for name in rule.advises(shape):
        size, legal = getattr(shape, name), _legal_sizes(name, shape, layout, source)
        if around := [*legal[legal <= size][-1:], *legal[legal > size][:1]]:
            if size not in around:
                nearest.append(f"{name}: {' or '.join(map(str, around))}")
        else:
            none.append(name)
    if none:
        return f"no {' and no '.join(none)} is legal beside the other sizes; choose others of these, too"
    return f"nearest legal {'; '.join(nearest)}"


def _legal_sizes(name: str, shape: Architecture, layout: Layout, source: Architecture | None) -> Any:
    """Return the sizes, ascending, that keep all rules which advise a size, as far as these are about it."""
    most = 2 * max(
        getattr(shape, name),
        EXPERT_GRAIN * shape.num_attention_heads,
        shape.num_attention_heads * shape.head_dim,
        shape.mamba_channels,
        max(2, shape.num_experts_per_tok) * shape.num_expert_groups,
    )
    legal = np.arange(1, 1 + (most if source is None else getattr(source, name)))
    for rule in RULES:
        advised = rule.advises(shape)
        if rule.applies(layout) and name in advised:
            others = dict.fromkeys(set(advised) - {name}, 0)  # a multiple of whatever the rule asks for
            legal = legal[rule.keeps({**axis_sizes(shape), **others, name: legal}, shape)]
    return legal


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
            f"{' or '.join(sorted(set(map(first_word, attention))))}"
        )


def require_latents(architecture: Architecture) -> None:
    """Refuse a model whose experts read latents that stock transformers cannot multiply.

    Args:
        architecture: Its shape.

    Raises:
        InvalidArchitectureError: With the number of latents, which pruning leaves as it is.
    """
    if (latents := architecture.fixed_sizes.get(_LATENTS, 0)) % EXPERT_GRAIN:
        raise InvalidArchitectureError(
            f"{_LATENTS}={latents} is no multiple of {EXPERT_GRAIN}: stock transformers computes experts with grouped "
            "matrix products, whose rows must fill 16 bytes, and pruning leaves this size as it is; give a model that "
            "was trained with another"
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


def require_last_kind(architecture: Architecture, layout: Layout) -> None:
    """Refuse a shape whose last layer stock transformers would take for one of another kind.

    Args:
        architecture: The shape.
        layout: The table of its family.

    Raises:
        InvalidArchitectureError: Naming both kinds, and what to do.
    """
    if layout.last_kind and architecture.layer_kinds and not is_of(architecture.layer_kinds[-1], layout.last_kind):
        raise InvalidArchitectureError(
            f"the last of the {architecture.num_hidden_layers} layers is of kind {architecture.layer_kinds[-1]!r}, and "
            f"stock transformers takes the last layer of a {layout.model_type!r} for a {layout.last_kind!r}, whatever "
            f"the config says; let the source's last layer stay, or drop all behind another {layout.last_kind!r}"
        )


def require_room_for_last(num_kept: int, source: Architecture, layout: Layout) -> None:
    """Refuse a number of layers that leaves no room for the last layer, where that has to stay.

    Args:
        num_kept: Layers of the model.
        source: The shape that it is pruned from.
        layout: The table of its family.

    Raises:
        InvalidArchitectureError: With the fewest layers to keep.
    """
    if num_kept < (fewest := fewest_layers(source.kinds, layers_that_stay((), source, layout))):
        raise InvalidArchitectureError(
            f"a model of num_hidden_layers={num_kept} keeps no layer of kind {source.layer_kinds[-1]!r}, and stock "
            f"transformers takes the last layer of a {layout.model_type!r} for a {layout.last_kind!r}, whatever the "
            f"config says; keep at least {fewest} layers"
        )


def layers_that_stay(protected: Collection[int], source: Architecture, layout: Layout) -> set[int]:
    """Return the indices of the layers that stay in all models of fewer layers: also the last, where it has to.

    Args:
        protected: Layers that are to stay, negative ones from the end.
        source: The shape that models are pruned from.
        layout: The table of its family.
    """
    last = (-1,) if layout.last_kind else ()
    return {layer % source.num_hidden_layers for layer in (*protected, *last)}


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
