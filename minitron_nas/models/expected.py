"""`ExpectedTensors`: what a checkpoint of some shape holds, by its family's table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

from minitron_nas.architecture.kinds import GIVING, SHARING, shares
from minitron_nas.architecture.layout import Layout, stored_tensor
from minitron_nas.architecture.spec import Architecture
from minitron_nas.storage.weights import TensorHeader

_DIMS_OF_STACK = 3


@dataclass(frozen=True, slots=True)
class ExpectedTensors:
    """The tensors that the files of a checkpoint of some shape have, with their shapes, by the table's names.

    Attributes:
        layout: The table of its family.
        stacks: How many tensors of the table each of those holds that hold several, one after the other.
        required: What it has to hold.
        twins: What only an untied model needs; a tied one may carry it as a copy of the embedding.
        embedding: The name of the token embedding.
        num_layers: How many layers it has.
        unread: What it may carry of keys and values in layers that have none of their own.
    """

    layout: Layout
    stacks: Mapping[str, int]
    required: Mapping[str, tuple[int, ...]]
    twins: Mapping[str, tuple[int, ...]]
    embedding: str
    num_layers: int
    unread: frozenset[str] = frozenset()

    @classmethod
    def of(cls, architecture: Architecture, layout: Layout) -> Self:
        """Read them off the table.

        Args:
            architecture: The checkpoint's shape.
            layout: The table of its family.
        """
        required = _shapes(architecture, layout)
        untied = _shapes(replace(architecture, tie_word_embeddings=False), layout)
        twins = {name: shape for name, shape in untied.items() if name not in required}
        embedding = layout.embedding.name
        stacks = {
            stored_tensor(place.name): architecture.num_experts
            for place in layout.tensors(architecture)
            if place.row.is_slice
        }
        unread = frozenset(_unread(architecture, layout))
        return cls(layout, stacks, required, twins, embedding, architecture.num_hidden_layers, unread)

    @property
    def known(self) -> dict[str, tuple[int, ...]]:
        """All that it may hold."""
        return {**self.required, **self.twins}

    def named(self, found: Mapping[str, TensorHeader]) -> dict[str, TensorHeader]:
        """Return a checkpoint's headers under the table's names, without what the table ignores.

        Args:
            found: The headers under the names that the files give them.
        """
        known, layout = self.known, self.layout
        own = {older: name for name in known for older in layout.stored_names(name) if older not in known}
        named = {own.get(name, name): header for name, header in found.items() if not self._is_dropped(name)}
        return {own: piece for name, header in named.items() for own, piece in self._unstacked(name, header).items()}

    def _unstacked(self, name: str, header: TensorHeader) -> dict[str, TensorHeader]:
        """Return the headers of all experts' own tensors of one that holds them, or that of any other tensor."""
        parts = self.layout.unstacked(name)
        if len(header.shape) != _DIMS_OF_STACK or not parts or header.shape[1] % len(parts):
            return {name: header}
        size = header.shape[1] // len(parts)
        return {
            part.format(expert=expert): header.slice(expert).rows(number * size, (number + 1) * size)
            for expert in range(header.shape[0])
            for number, part in enumerate(parts)
        }

    def _is_dropped(self, name: str) -> bool:
        """Whether transformers has no use for a tensor of the file, and says nothing of it."""
        before = self.layout.layer_module.partition("{layer}")[0]
        number = name.removeprefix(before).partition(".")[0] if name.startswith(before) else ""
        later = self.layout.drops_later_layers and number.isdecimal() and int(number) >= self.num_layers
        ignored = name.endswith(self.layout.ignored) or name.startswith(self.layout.ignored_modules)
        return later or ignored or name in self.unread

    def sliced(self, named: Mapping[str, TensorHeader]) -> dict[str, TensorHeader]:
        """Return one header for each tensor of the table, those of a stack instead of the stack's own.

        Args:
            named: What `named` returned; a stack of another length stays whole.
        """
        result: dict[str, TensorHeader] = {}
        for name, header in named.items():
            if self.stacks.get(name) == next(iter(header.shape), 0):
                result |= {f"{name}[{number}]": header.slice(number) for number in range(header.shape[0])}
            else:
                result[name] = header
        return result


def _unread(architecture: Architecture, layout: Layout) -> Iterator[str]:
    """Yield the names that tensors of layers with keys of their own would have in layers without."""
    for layer, kind in enumerate(architecture.kinds):
        if shares(kind):
            own = {row.module for row in layout.rows if row.in_kind(kind)}
            given = [row for row in layout.rows if row.in_kind(kind.replace(SHARING, GIVING))]
            yield from (row.name.format(layer=layer) for row in given if row.module not in own)


def _shapes(architecture: Architecture, layout: Layout) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for place in layout.tensors(architecture):
        slices = (architecture.num_experts,) if place.row.is_slice else ()
        found[stored_tensor(place.name)] = (*slices, *place.row.shape(architecture))
    return found
