"""All shapes of a space that meet a size: arithmetic on arrays, no torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from minitron_nas.architecture.costs import count_parameters, count_parameters_of
from minitron_nas.architecture.layout import Axis, Layout, axis_sizes
from minitron_nas.architecture.rules import RULES, Rule
from minitron_nas.architecture.spec import SHAPE_FIELDS, Architecture
from minitron_nas.errors import SpaceError
from minitron_nas.settings import format_count
from minitron_nas.space.axes import SearchSpace

Columns: TypeAlias = dict[str, Any]
"""One int64 array per name in SHAPE_FIELDS, all of one length."""

WINDOW_RULE = "size_window"
_SPACE_RULES = {
    "heads_fill_groups": "every KV group needs equally many query heads, and no more than the source's have",
    "pruning_only_removes": "no size may exceed the source's",
    "pruning_removes_something": "the source itself is no candidate",
    "protected_layers_stay": "depth pruning never drops a protected layer",
    WINDOW_RULE: "total parameters must lie within the size's tolerance or window",
}
RULE_REASONS = {rule.name: rule.reason for rule in RULES} | _SPACE_RULES
"""Every rule that can leave a shape out, with its reason."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One legal shape with its total parameters."""

    architecture: Architecture
    num_parameters: int

    @property
    def id(self) -> str:
        """The shape's id."""
        return self.architecture.id


@dataclass(frozen=True, slots=True)
class Enumeration:
    """The candidates of one size, and how many raw combinations each rule left out."""

    candidates: tuple[Candidate, ...]
    excluded: dict[str, int]


def enumerate_candidates(space: SearchSpace, size: int, source: Architecture, layout: Layout) -> Enumeration:
    """List every legal shape of a space within a size's window.

    The order is stable: more layers first, then fewer heads, fewer groups, more channels, fewer
    neurons.

    Args:
        space: What may change.
        size: Total parameters wanted.
        source: The shape to prune.
        layout: The source's family table.

    Raises:
        SpaceError: If the size is not below the source's, or no shape lies within the window; the
            message names the nearest reachable sizes and the rule that blocks.
    """
    source_parameters = count_parameters(source, layout)
    low, high = space.size_window(size)
    if size >= source_parameters:
        raise SpaceError(
            f"size {format_count(size)} is not below the source's {source_parameters:,} parameters; "
            "choose a smaller size"
        )
    columns = _raw_columns(space, source)
    excluded: dict[str, int] = {}
    for rule, keeps in _checks(space, source, layout):
        keep = keeps(columns)
        excluded[rule] = int(len(keep) - np.count_nonzero(keep))
        columns = {name: values[keep] for name, values in columns.items()}
    counts = count_parameters_of(layout, source, _axis_arrays(columns, source), columns["num_hidden_layers"])
    inside = (counts >= low) & (counts <= high)
    excluded[WINDOW_RULE] = int(len(inside) - np.count_nonzero(inside))
    if not inside.any():
        raise SpaceError(_nothing_reachable(size, low, high, counts, excluded))
    columns = {name: values[inside] for name, values in columns.items()}
    counts = counts[inside]
    order = np.lexsort(
        (
            columns["intermediate_size"],
            -columns["hidden_size"],
            columns["num_key_value_heads"],
            columns["num_attention_heads"],
            -columns["num_hidden_layers"],
        )
    )
    candidates = tuple(
        Candidate(source.reshaped({name: int(columns[name][i]) for name in SHAPE_FIELDS}), int(counts[i]))
        for i in order
    )
    return Enumeration(candidates, {rule: count for rule, count in excluded.items() if count})


def _raw_columns(space: SearchSpace, source: Architecture) -> Columns:
    """Every combination of the space, once, as one array per size."""
    axes = space.axes

    def sizes_of(name: str) -> list[int]:
        axis = getattr(axes, name)
        return axis.sizes(getattr(source, name)) if axis is not None else [getattr(source, name)]

    hidden = sizes_of("hidden_size")
    neurons = axes.intermediate_size
    if neurons is not None and neurons.ratios is not None:
        pairs = [
            (size, int(size * ratio + 1e-9) // neurons.multiple_of * neurons.multiple_of)
            for size, ratio in product(hidden, neurons.ratios)
        ]
    else:
        pairs = list(product(hidden, sizes_of("intermediate_size")))
    groups = sizes_of("num_key_value_heads")
    if axes.num_attention_heads is None:
        heads = [(kv * source.heads_per_group, kv) for kv in groups]
    else:
        heads = list(product(sizes_of("num_attention_heads"), groups))
    grid = product(sizes_of("num_hidden_layers"), dict.fromkeys(pairs), dict.fromkeys(heads))
    table = np.array([(layers, h, f, q, kv) for layers, (h, f), (q, kv) in grid], dtype=np.int64)
    return {name: table[:, column] for column, name in enumerate(SHAPE_FIELDS)}


def _checks(space: SearchSpace, source: Architecture, layout: Layout) -> Iterator[tuple[str, Callable[[Columns], Any]]]:
    """Yield (rule, function from columns to truth values); each may count on those before it."""
    yield (
        "heads_fill_groups",
        lambda shapes: (
            (shapes["num_attention_heads"] % shapes["num_key_value_heads"] == 0)
            & (shapes["num_attention_heads"] // shapes["num_key_value_heads"] <= source.heads_per_group)
        ),
    )
    yield (
        "pruning_only_removes",
        lambda shapes: np.all(
            [(shapes[name] >= 1) & (shapes[name] <= getattr(source, name)) for name in SHAPE_FIELDS], axis=0
        ),
    )
    yield (
        "pruning_removes_something",
        lambda shapes: np.any([shapes[name] != getattr(source, name) for name in SHAPE_FIELDS], axis=0),
    )
    num_protected = len({layer % source.num_hidden_layers for layer in space.protected_layers})
    yield "protected_layers_stay", lambda shapes: shapes["num_hidden_layers"] >= num_protected
    for rule in RULES:
        if rule.applies(layout):
            yield rule.name, partial(_keeps, rule, source)


def _keeps(rule: Rule, source: Architecture, shapes: Columns) -> Any:
    return rule.keeps(_axis_arrays(shapes, source))


def _axis_arrays(columns: Columns, source: Architecture) -> dict[Axis, Any]:
    fixed: dict[Axis, Any] = dict(axis_sizes(source))
    return fixed | {
        Axis.HIDDEN: columns["hidden_size"],
        Axis.NEURONS: columns["intermediate_size"],
        Axis.KV_GROUPS: columns["num_key_value_heads"],
        Axis.GROUP_HEADS: columns["num_attention_heads"] // columns["num_key_value_heads"],
    }


def _nothing_reachable(size: int, low: int, high: int, counts: Any, excluded: dict[str, int]) -> str:
    below, above = counts[counts < low], counts[counts > high]
    near = [f"{int(below.max()):,}"] if len(below) else []
    near += [f"{int(above.min()):,}"] if len(above) else []
    blocking = ", ".join(f"{rule} ({count} shapes)" for rule, count in excluded.items() if count)
    return (
        f"no shape has between {low:,} and {high:,} parameters (size {format_count(size)}); "
        f"nearest reachable: {' and '.join(near) or 'none'}; left out by: {blocking}; "
        "widen the space's axes, its tolerance, or choose a nearby size"
    )
