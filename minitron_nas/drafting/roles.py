"""What a tiny model's modules do: which are norms, what they read, and in which order they are called."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from minitron_nas.drafting.probe import Call, Probe, embedding_of, row_name, same_numbers

NormKind = Literal["rms", "rms_plus_one", "layer", "layer_plus_one"]
_LAYER = 1
"""The layer that is looked at: what the first one reads may be the embedding itself."""
_ALIKE = 1e-3


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm with a gain.

    Attributes:
        kind: What it computes.
        on_branch: Whether it acts on what is added to the residual stream.
    """

    kind: NormKind
    on_branch: bool


class Roles:
    """What the modules of a probe do, by the names of the table's rows."""

    def __init__(self, probe: Probe) -> None:
        """Look at one layer, and at all that stands outside of layers.

        Args:
            probe: A model that has run.
        """
        self._probe = probe
        self._modules = dict(probe.model.named_modules())
        self._names: dict[str, str] = {}
        for stored in probe.stored:
            name, layer = row_name(stored)
            if layer in (None, _LAYER):
                self._names.setdefault(name, stored)
        self._layer = next((stored for stored in self._names.values() if row_name(stored)[1] is not None), "")
        self.renamed = tuple(self._renamed())
        self.norms = {name: norm for name in self._names if (norm := self._norm(name)) is not None}

    def home(self, name: str) -> str | None:
        """Return the module in memory that holds a row's tensor, None where memory holds it otherwise."""
        stored = self._names.get(name)
        found = self._probe.homes.get(stored) if stored is not None else None
        return found.rpartition(".")[0] if found is not None else None

    def order(self, name: str) -> tuple[int, int]:
        """Return a sort key: when the row's module, or else what contains it, is called; weights before biases."""
        module = self.home(name)
        if module is None:
            module = self._names[name].rpartition(".")[0]
            for stored, loaded in self.renamed:
                module = module.replace(stored, loaded)
        while module and module not in self._probe.calls:
            module = module.rpartition(".")[0]
        return self._probe.calls[module].order, int(not name.endswith(".weight"))

    def conv1d(self, name: str) -> bool:
        """Whether a matrix is stored (inputs, outputs)."""
        home = self.home(name)
        return home is not None and isinstance(self._modules[home], Conv1D)

    def norm_of(self, name: str) -> str | None:
        """Return the norm whose output a matrix reads, None where it reads something else."""
        call = self._call(name)
        if call is None:
            return None
        for norm in self.norms:
            other = self._call(norm)
            if other is not None and same_numbers(other.said, call.read):
                return norm
        return None

    def reads_stream(self, name: str) -> bool:
        """Whether a matrix reads hidden channels: a norm's output, what the layer reads, or what others read too."""
        call = self._call(name)
        if call is None or call.read is None:
            return False
        layer = self._probe.calls.get(self.layer_name.format(layer=_LAYER))
        if self.norm_of(name) is not None or (layer is not None and same_numbers(layer.read, call.read)):
            return True
        others = (self._call(other) for other in self._names)
        return any(
            other is not None and other.order != call.order and same_numbers(other.read, call.read) for other in others
        )

    def said_by(self, name: str) -> str | None:
        """Return the matrix whose output a norm reads, None where there is none."""
        call = self._call(name)
        if call is None:
            return None
        return next(
            (
                other
                for other in self._names
                if other not in self.norms and (c := self._call(other)) is not None and same_numbers(c.said, call.read)
            ),
            None,
        )

    @property
    def layer_name(self) -> str:
        """Module name, with `{layer}`, of a decoder layer in memory; empty where there is none."""
        name = next((name for name in self._names if "{layer}" in name), "")
        return name[: name.index("{layer}") + len("{layer}")] if name else ""

    @property
    def layers_return_tuples(self) -> bool:
        """Whether a decoder layer returns a tuple."""
        layer = self._probe.calls.get(self.layer_name.format(layer=_LAYER))
        return layer is not None and layer.is_tuple

    def scales_embeddings(self, hidden_size: int) -> bool:
        """Whether the first layer reads embeddings times the square root of the hidden size."""
        first = self._probe.calls.get(self.layer_name.format(layer=0))
        table = embedding_of(self._probe.model)
        embedded = table[self._probe.prompt]
        if first is None or first.read is None or first.read.numel() != embedded.numel():
            return False
        return torch.allclose(first.read.view_as(embedded), embedded * hidden_size**0.5, rtol=_ALIKE, atol=1e-5)

    def _renamed(self) -> Iterator[tuple[str, str]]:
        """Yield parts of names that differ in memory, each once."""
        found: dict[tuple[str, str], None] = {}
        for name, stored in self._names.items():
            home, module = self.home(name), stored.rpartition(".")[0]
            if home is not None and home != module:
                found[_difference(module, home)] = None
        yield from found

    def _call(self, name: str) -> Call | None:
        home = self.home(name)
        return self._probe.calls.get(home) if home is not None else None

    def _norm(self, name: str) -> Norm | None:
        """Recognise a norm by what it does: its output does not grow with its input."""
        home, call = self.home(name), self._call(name)
        shape = self._probe.stored[self._names[name]]
        if home is None or call is None or call.read is None or call.said is None or len(shape) != 1:
            return None
        if call.read.shape != call.said.shape or not name.endswith(".weight"):
            return None
        kind = _kind(self._modules[home], call.read)
        return Norm(kind, self._on_branch(name, call)) if kind is not None else None

    def _on_branch(self, name: str, call: Call) -> bool:
        """Whether a norm reads what a matrix or block puts out, or stands between embedding and layers."""
        first = self._probe.calls.get(self.layer_name.format(layer=0))
        if "{layer}" not in name:
            return first is not None and same_numbers(call.said, first.read)
        layer = self.layer_name.format(layer=_LAYER) + "."
        home = self.home(name)
        return any(
            module.startswith(layer) and module != home and same_numbers(other.said, call.read)
            for module, other in self._probe.calls.items()
            if other.order < call.order or module.startswith(layer)
        )


@torch.no_grad()
def _kind(module: nn.Module, inputs: Tensor) -> NormKind | None:
    try:
        plain, larger = module(inputs), module(4 * inputs)
        shifted = module(inputs + 1)
        bare = copy.deepcopy(module)
        for parameter in bare.parameters():
            parameter.zero_()
        without = bare(inputs)
    except Exception:  # noqa: BLE001 - a module that takes more than one tensor is none
        return None
    size = plain.abs().max()
    if not isinstance(plain, Tensor) or (larger - plain).abs().max() > 0.05 * size:
        return None
    centres = bool((shifted - plain).abs().max() < _ALIKE * size)
    plus_one = bool(without.abs().max() > _ALIKE)
    if centres:
        return "layer_plus_one" if plus_one else "layer"
    return "rms_plus_one" if plus_one else "rms"


def _difference(stored: str, home: str) -> tuple[str, str]:
    """Return the parts of two names that differ, with the dot before them."""
    one, other = stored.split("."), home.split(".")
    while one and other and one[0] == other[0]:
        one, other = one[1:], other[1:]
    began = len(one) < len(stored.split("."))
    while one and other and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    dot = "." if began else ""
    return dot + ".".join(one), dot + ".".join(other)
