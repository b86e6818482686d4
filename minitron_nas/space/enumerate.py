"""All shapes of a space that meet a size: arithmetic on arrays, no torch."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import eq
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from minitron_nas.architecture.costs import Columns, Integers, axis_sizes_of, count_parameters_of
from minitron_nas.architecture.kinds import fewest_layers
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.rules import RULES, Rule, fewest_with_attention, layers_that_stay
from minitron_nas.architecture.spec import SHAPE_FIELDS, Architecture
from minitron_nas.errors import SpaceError
from minitron_nas.space.axes import SearchSpace
from minitron_nas.space.grid import BLOCK, Grid
from minitron_nas.space.size import Size

Check: TypeAlias = tuple[str, Callable[[Columns], Any]]
"""A rule's name, and the function from columns to truth values."""

Measure: TypeAlias = Callable[[Columns], NDArray[Any]]
"""What shapes have in the unit of a size: from columns, (num_shapes,) each, to (num_shapes,)."""

WINDOW_RULE = "size_window"
_SPACE_RULES = {
    "heads_fill_groups": "every KV group needs equally many query heads, and no more than the source's have",
    "mamba_heads_fill_groups": "every group of a Mamba mixer needs equally many heads",
    "pruning_only_removes": "no size may exceed the source's",
    "pruning_removes_something": "the source itself is no candidate",
    "protected_layers_stay": "depth pruning never drops a protected layer",
    "last_layer_stays": "stock transformers takes the last layer for one of its kind, whatever the config says",
    "attention_stays": "of a hybrid without a layer with attention stock transformers does not generate",
    WINDOW_RULE: "total parameters, or what else the size is told in, must lie within its tolerance or window",
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


class Candidates(Sequence[Candidate]):
    """Candidates of one size, each built when it is asked for: there may be millions."""

    def __init__(self, source: Architecture, grid: Grid, numbers: Integers, num_parameters: Integers) -> None:
        """Remember which combinations of a grid are candidates.

        Args:
            source: The shape to prune.
            grid: All combinations.
            numbers: (num_candidates,), those that are candidates.
            num_parameters: (num_candidates,), their total parameters.
        """
        self._source = source
        self._grid = grid
        self._numbers = numbers
        self._num_parameters = num_parameters

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self._numbers)

    def __eq__(self, other: object) -> bool:
        """Compare with other candidates, one by one."""
        return isinstance(other, Candidates) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # like lists and arrays

    @overload
    def __getitem__(self, index: int) -> Candidate: ...

    @overload
    def __getitem__(self, index: slice) -> "Candidates": ...

    def __getitem__(self, index: int | slice) -> "Candidate | Candidates":
        """Return one candidate, or those of a slice."""
        if isinstance(index, slice):
            return Candidates(self._source, self._grid, self._numbers[index], self._num_parameters[index])
        position = range(len(self))[index]
        return next(iter(self[position : position + 1]))

    @property
    def num_parameters(self) -> Integers:
        """Total parameters of all candidates, (num_candidates,)."""
        return self._num_parameters

    def columns(self) -> Columns:
        """Return the prunable sizes of all candidates, an array for each, (num_candidates,)."""
        return self._grid.columns(self._numbers)

    def taken(self, indices: Integers) -> "Candidates":
        """Return some of them.

        Args:
            indices: (num_taken,), ascending.
        """
        return Candidates(self._source, self._grid, self._numbers[indices], self._num_parameters[indices])

    def __iter__(self) -> Iterator[Candidate]:
        """Build the candidates one after the other."""
        for start in range(0, len(self), BLOCK):
            columns = self._grid.columns(self._numbers[start : start + BLOCK])
            counts = self._num_parameters[start : start + BLOCK].tolist()
            rows = zip(*(sizes.tolist() for sizes in columns.values()), strict=True)
            for row, count in zip(rows, counts, strict=True):
                yield Candidate(self._source.reshaped(dict(zip(columns, row, strict=True))), count)


@dataclass(frozen=True, slots=True)
class Enumeration:
    """The candidates of one size, and how many raw combinations each rule left out.

    Attributes:
        candidates: In a stable order.
        values: (num_candidates,), what they have in the unit of the size; follows from the candidates.
        excluded: Combinations by the rule that left them out.
    """

    candidates: Candidates
    values: NDArray[Any] = field(compare=False)
    excluded: dict[str, int]


def enumerate_candidates(
    space: SearchSpace, size: Size | float | str, source: Architecture, layout: Layout, measure: Measure | None = None
) -> Enumeration:
    """List every legal shape of a space within a size's window.

    The order is stable: more layers first, then fewer heads, fewer groups, more channels, fewer
    neurons, more experts, fewer neurons of an expert, more heads of Mamba mixers. Shapes that a rule leaves
    out are never built: ten million combinations take a few seconds.

    Args:
        space: What may change.
        size: Total parameters wanted, or a `Size`.
        source: The shape to prune.
        layout: The source's family table.
        measure: Of the size's column; needed where the size is not told in parameters.

    Raises:
        SpaceError: If the size is none, the source's family lacks an axis of the space, the size is not below the
            source's, or no shape lies within the window; the message names the nearest reachable
            sizes and the rule that blocks.
    """
    try:
        size = Size.parse(size)
    except ValueError as error:
        raise SpaceError(str(error)) from None
    if size.unit == "parameters":
        measure = partial(parameters_of, source=source, layout=layout)
    if measure is None:
        raise SpaceError(f"size {size} needs a `measure` of {size.column}; see minitron_nas.search.costing.Costing")
    low, high = space.size_window(size)
    whole = {name: np.array([getattr(source, name)]) for name in layout.column_fields()}
    _require_below(size, measure(whole)[0].item())
    grid = Grid.of(space.axes, source, layout)
    checks = list(_checks(space, source, layout))
    tally: Counter[str] = Counter()
    near: list[float] = []
    kept: list[tuple[NDArray[Any], ...]] = []
    for block in grid.blocks():
        numbers, columns, left_out = _sift(block, grid.columns(block), checks)
        values = measure(columns)
        inside = (values >= low) & (values <= high)
        kept.append((numbers[inside], values[inside]))
        near += _nearest(values, low, high)
        tally.update(left_out)
        tally[WINDOW_RULE] += _num_false(inside)
    excluded = {rule: tally[rule] for rule in (*(rule for rule, _ in checks), WINDOW_RULE) if tally[rule]}
    numbers, values = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    if not len(numbers):
        advice = _advice(space, source, near, excluded)
        raise SpaceError(_nothing_reachable(size, low, high, near, excluded) + advice)
    counts = values if size.unit == "parameters" else parameters_of(grid.columns(numbers), source, layout)
    return Enumeration(Candidates(source, grid, numbers, counts), values, excluded)


def expected_parameters(size: Size, found: Enumeration | None, most: int) -> int:
    """Return the total parameters that a student of a size has, about.

    Args:
        size: Itself the answer where it is told in parameters.
        found: Its shapes, of which the largest counts; None where they are not known yet.
        most: The answer then.
    """
    if size.unit == "parameters":
        return int(size.value)
    return most if found is None else int(found.candidates.num_parameters.max())


def legal_columns(space: SearchSpace, source: Architecture, layout: Layout, most: int = 2**17) -> Columns:
    """Return the sizes of the legal shapes of a space, whatever their parameters, or of those among `most` at random.

    Args:
        space: What may change.
        source: The shape to prune.
        layout: The source's family table.
        most: Combinations to look at; of a space that has more, a seeded sample.

    Returns:
        (num_shapes,) for each prunable size of the family.

    Raises:
        SpaceError: If the source's family lacks an axis of the space, or no shape is legal.
    """
    grid = Grid.of(space.axes, source, layout)
    rng = np.random.default_rng(0)
    numbers = np.arange(len(grid)) if len(grid) <= most else np.unique(rng.integers(len(grid), size=most))
    kept, columns, left_out = _sift(numbers, grid.columns(numbers), list(_checks(space, source, layout)))
    if not len(kept):
        rules = ", ".join(f"{rule} ({count} shapes)" for rule, count in left_out.items() if count)
        raise SpaceError(f"no shape of the space is legal; left out by: {rules}; widen the space's axes")
    return columns


def parameters_of(columns: Columns, source: Architecture, layout: Layout) -> Integers:
    """Return the total parameters of many shapes at once.

    Args:
        columns: (num_shapes,) for each prunable size of the family.
        source: The shape they are cut from.
        layout: The source's family table.

    Returns:
        (num_shapes,).
    """
    sizes = axis_sizes_of(source, columns)
    return np.asarray(count_parameters_of(layout, source, sizes, columns["num_hidden_layers"]))


def _sift(numbers: Integers, columns: Columns, checks: list[Check]) -> tuple[Integers, Columns, dict[str, int]]:
    """Return the combinations that pass every check, and how many each check left out."""
    left_out = {}
    for rule, keeps in checks:
        keep = keeps(columns)
        left_out[rule] = _num_false(keep)
        if left_out[rule]:
            numbers = numbers[keep]
            columns = {name: sizes[keep] for name, sizes in columns.items()}
    return numbers, columns, left_out


def _num_false(values: NDArray[np.bool_]) -> int:
    return len(values) - int(np.count_nonzero(values))


def _checks(space: SearchSpace, source: Architecture, layout: Layout) -> Iterator[Check]:
    """Yield the rules of a space and a family; each may count on those before it."""
    names = layout.shape_fields_of(source)
    yield (
        "heads_fill_groups",
        lambda shapes: (
            (shapes["num_attention_heads"] % shapes["num_key_value_heads"] == 0)
            & (shapes["num_attention_heads"] // shapes["num_key_value_heads"] <= source.heads_per_group)
        ),
    )
    if layout.has_mamba:
        num_groups = max(1, source.mamba_num_groups)
        yield "mamba_heads_fill_groups", lambda shapes: shapes["mamba_num_heads"] % num_groups == 0
    yield (
        "pruning_only_removes",
        lambda shapes: np.all(
            [(shapes[name] >= 1) & (shapes[name] <= getattr(source, name)) for name in names], axis=0
        ),
    )
    yield (
        "pruning_removes_something",
        lambda shapes: np.any([shapes[name] != getattr(source, name) for name in names], axis=0),
    )
    fewest = fewest_layers(source.kinds, {layer % source.num_hidden_layers for layer in space.protected_layers})
    yield "protected_layers_stay", lambda shapes: shapes["num_hidden_layers"] >= fewest
    with_last = fewest_layers(source.kinds, layers_that_stay(space.protected_layers, source, layout))
    yield "last_layer_stays", lambda shapes: shapes["num_hidden_layers"] >= with_last
    with_attention = fewest_with_attention(source, layout)
    yield "attention_stays", lambda shapes: shapes["num_hidden_layers"] >= with_attention
    for rule in RULES:
        if rule.applies(layout):
            yield rule.name, partial(_keeps, rule, source)


def _keeps(rule: Rule, source: Architecture, shapes: Columns) -> Any:
    return rule.keeps(axis_sizes_of(source, shapes), source)


def _require_below(size: Size, source: float) -> None:
    """Refuse a size that the source meets uncut."""
    if size.is_below(source):
        return
    beyond, wanted = ("above", "greater") if size.is_speed else ("below", "smaller")
    raise SpaceError(
        f"size {size} is not {beyond} the source's {size.told(source)} {size.words}; choose a {wanted} size"
    )


def _nearest(values: NDArray[Any], low: float, high: float) -> list[float]:
    """Return the greatest value below a window and the least above it, where there are such."""
    below, above = values[values < low], values[values > high]
    return ([below.max().item()] if len(below) else []) + ([above.min().item()] if len(above) else [])


def _nothing_reachable(size: Size, low: float, high: float, near: list[float], excluded: dict[str, int]) -> str:
    nearest = _nearest(np.array(near), low, high)
    reachable = " and ".join(map(size.told, nearest)) or "none"
    blocking = ", ".join(f"{rule} ({count} shapes)" for rule, count in excluded.items())
    return (
        f"no shape has between {size.told(low)} and {size.told(high)} {size.words} (size {size}); "
        f"nearest reachable: {reachable}; left out by: {blocking}; "
    )


def _advice(space: SearchSpace, source: Architecture, near: list[float], excluded: dict[str, int]) -> str:
    """Say what to do where nothing is reachable: above all, whether the space is for another model."""
    made_for = space.source or {}
    other = [name for name in SHAPE_FIELDS if name in made_for and made_for[name] != getattr(source, name)]
    if not other and excluded.keys() == {"pruning_removes_something"}:
        return "the space holds the source and nothing smaller; give it an axis with smaller sizes, such as hidden_size"
    if near or not other:
        return "widen the space's axes, its tolerance, or choose a nearby size"
    wanted = ", ".join(f"{name}={made_for[name]}" for name in other)
    found = ", ".join(f"{name}={getattr(source, name)}" for name in other)
    return f"the space is for {wanted}, and this model has {found}; choose a space for this model, such as default"
