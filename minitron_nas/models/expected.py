"""`ExpectedTensors`: what a checkpoint of some shape holds, by its family's table."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from minitron_nas.architecture.layout import HIDDEN, VOCAB, Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.storage.weights import TensorHeader


@dataclass(frozen=True, slots=True)
class ExpectedTensors:
    """The tensors that a checkpoint of some shape has, with their shapes, by the table's names.

    Attributes:
        layout: The table of its family.
        required: What it has to hold.
        twins: What only an untied model needs; a tied one may carry it as a copy of the embedding.
        embedding: The name of the token embedding.
    """

    layout: Layout
    required: Mapping[str, tuple[int, ...]]
    twins: Mapping[str, tuple[int, ...]]
    embedding: str

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
        embedding = next(place.name for place in layout.tensors(architecture) if place.row.dims == (VOCAB, HIDDEN))
        return cls(layout, required, twins, embedding)

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
        return {own.get(name, name): header for name, header in found.items() if not name.endswith(layout.ignored)}


def _shapes(architecture: Architecture, layout: Layout) -> dict[str, tuple[int, ...]]:
    return {place.name: place.row.shape(architecture) for place in layout.tensors(architecture)}
