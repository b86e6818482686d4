"""The one surgery: from a prepared teacher to a candidate's tensors."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from minitron_nas.architecture.config import with_sizes
from minitron_nas.architecture.layout import HIDDEN, Dim, Layout, TensorPlace
from minitron_nas.architecture.rules import check_architecture, require_keys, require_last_kind
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import InvalidArchitectureError
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.config import layer_lists
from minitron_nas.models.stock import model_from_tensors
from minitron_nas.pruning.compensate import scaled_constants, scaling_of
from minitron_nas.pruning.merging import Merge
from minitron_nas.pruning.mix import Kept
from minitron_nas.pruning.parts import Cut, Part, Vector, whole
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.repair import Mend
from minitron_nas.pruning.rotation import HiddenBasis, stream_norms
from minitron_nas.storage.weights import TensorHeader


def student_config(prepared: PreparedTeacher, target: Architecture) -> dict[str, Any]:
    """Return the teacher's config with the student's sizes.

    `head_dim` becomes explicit where the family knows it, and lists that hold one entry per layer
    keep the entries of the layers that stay.

    Args:
        prepared: The ranked teacher.
        target: A shape no larger than the teacher's.

    Raises:
        InvalidArchitectureError: If stock transformers refuses it.
    """
    kept_layers = prepared.order.kept_layers(target.num_hidden_layers)
    # A config.json may leave such lists out; what transformers fills in goes by the teacher's layers.
    filled = AutoConfig.for_model(**prepared.config).to_dict()
    per_layer = layer_lists(filled, prepared.architecture.num_hidden_layers, kept_layers)
    constants = scaled_constants(filled, prepared.layout, prepared.architecture, target)
    settled = prepared.settled(target)
    require_keys(settled)
    require_last_kind(settled, prepared.layout)
    config = with_sizes({**prepared.config, **per_layer, **constants}, settled, prepared.layout)
    try:
        filled = AutoConfig.for_model(**copy.deepcopy(config)).to_dict()
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise InvalidArchitectureError(
            f"transformers refuses the config of the student {target.id}: {reason}; choose other sizes"
        ) from error
    if not _are_read_as(settled, filled, prepared.layout):
        raise InvalidArchitectureError(
            f"transformers takes layers of the student {target.id}, of kinds {', '.join(settled.layer_kinds)}, for "
            "others; let other layers of the source stay"
        )
    return config


def _are_read_as(settled: Architecture, filled: Mapping[str, Any], layout: Layout) -> bool:
    """Whether transformers takes each layer of a student for one that has the tensors which the student's has."""
    if layout.kinds is None:
        return True
    read = layout.kinds.read(filled, settled.num_hidden_layers)
    return all(
        row.in_kind(own) == row.in_kind(other)
        for own, other in zip(settled.layer_kinds, read, strict=True)
        for row in layout.rows
    )


def cuts(
    prepared: PreparedTeacher, target: Architecture, repaired: Mapping[str, TensorHeader] | None = None
) -> list[Part]:
    """Return where every tensor of the student comes from, in the order of the family's table.

    Args:
        prepared: The ranked teacher.
        target: A shape no larger than the teacher's.
        repaired: Tensors of the student that stand ready in a file, by name.
    """
    return turned_cuts(prepared, target, basis_of(prepared, target), repaired or {})


def basis_of(prepared: PreparedTeacher, target: Architecture) -> HiddenBasis | None:
    """Return what a student's residual stream is written in; None where its channels are the teacher's.

    Args:
        prepared: The ranked teacher.
        target: The student's shape.
    """
    if prepared.rotation is None or target.hidden_size == prepared.architecture.hidden_size:
        return None
    return prepared.rotation.at(target.hidden_size, target.tie_word_embeddings)


def turned_cuts(
    prepared: PreparedTeacher, target: Architecture, basis: HiddenBasis | None, repaired: Mapping[str, TensorHeader]
) -> list[Part]:
    """Return the same for a basis that is given.

    Args:
        prepared: The ranked teacher.
        target: A shape no larger than the teacher's.
        basis: What the student's residual stream is written in; None selects channels.
        repaired: Tensors of the student that stand ready in a file, by name.
    """
    surgeon = _Surgeon(prepared, target, basis)
    return [
        Cut.all_of(place.name, repaired[place.name]) if place.name in repaired else surgeon.part(place)
        for place in prepared.layout.tensors(prepared.settled(target))
    ]


class _Surgeon:
    """Finds for each tensor of a student where it comes from."""

    def __init__(self, prepared: PreparedTeacher, target: Architecture, basis: HiddenBasis | None) -> None:
        self._prepared, self._target, self._basis = prepared, target, basis
        order = prepared.order
        self._layers = order.kept_layers(target.num_hidden_layers)
        self._experts = [order.kept_experts(layer, target.num_experts) for layer in self._layers]
        self._writers = set(prepared.layout.writers())
        norms = stream_norms(prepared.layout, prepared.architecture)
        self._norms = {place.name: number for number, place in enumerate(norms)}

    def part(self, place: TensorPlace) -> Part:
        layer = None if place.layer is None else self._layers[place.layer]
        expert = None if place.expert is None or place.layer is None else self._experts[place.layer][place.expert]
        origin = place._replace(name=place.row.name.format(layer=layer, expert=expert), layer=layer, expert=expert)
        header = self._prepared.headers[origin.name]
        if self._basis is not None and place.row.dims == (HIDDEN,):
            constant = self._constant(origin, self._basis)
            if constant is not None:
                return Vector(place.name, header.dtype, constant, self._prepared.path)
        kept = tuple(self._kept(dimension, origin) for dimension in place.row.dims)
        if self._basis is not None:
            return Cut(place.name, header, kept)
        scaling = scaling_of(place.row, self._prepared.layout, self._prepared.architecture, self._target)
        return Cut(place.name, header, kept, scaling)

    def _kept(self, dimension: Dim, origin: TensorPlace) -> Kept:
        if self._basis is not None and dimension == HIDDEN:
            layout = self._prepared.layout
            before = layout.norm_before(origin.row) if layout.reads_hidden(origin.row) else None
            if before is None:
                return self._basis.turn()
            return self._basis.turn(self._norms[before.name.format(layer=origin.layer)])
        entries = self._prepared.order.kept_entries(dimension, origin, self._prepared.architecture, self._target)
        if entries is None:
            return None
        prepared, row = self._prepared, origin.row
        if prepared.merge_heads and not row.is_norm and not prepared.layout.writes_hidden(row):
            merged = prepared.order.merged_entries(dimension, origin, prepared.architecture, self._target)
            if merged is not None:
                size = row.shape(prepared.architecture)[row.dims.index(dimension)]
                return Merge(entries, merged, size)
        if prepared.moments is None or dimension == HIDDEN or row not in self._writers:
            return entries.numpy()
        size = row.shape(prepared.architecture)[row.dims.index(dimension)]
        return Mend(prepared.moments, origin.name, entries.numpy(), size, prepared.ridge)

    def _constant(self, origin: TensorPlace, basis: HiddenBasis) -> Tensor | None:
        """The gain or bias of a norm of the rotated student; None for what is neither."""
        layout, size = self._prepared.layout, self._target.hidden_size
        if origin.row.is_norm:
            number = self._norms[origin.name]
            if basis.final_gain is not None and number == len(basis.gains) - 1:
                return basis.final_gain - layout.norm_offset
            return basis.gains[number].expand(size) - layout.norm_offset
        norm = layout.norm_of_bias(origin.row)
        if norm is None or basis.levels is None:
            return None
        return basis.levels[self._norms[norm.name.format(layer=origin.layer)]].expand(size)


def build_student(
    prepared: PreparedTeacher,
    target: Architecture,
    dtype: torch.dtype,
    repaired: Mapping[str, TensorHeader] | None = None,
) -> CausalLM:
    """Build the pruned causal LM in memory.

    Args:
        prepared: The ranked teacher.
        target: A shape no larger than the teacher's.
        dtype: Of the weights.
        repaired: Tensors of the student that stand ready in a file, by name.

    Raises:
        InvalidArchitectureError: If stock transformers would refuse the shape.
    """
    check_architecture(target, prepared.layout, prepared.architecture)
    tensors = {part.name: whole(part) for part in cuts(prepared, target, repaired)}
    return model_from_tensors(student_config(prepared, target), tensors, dtype)


def random_student(prepared: PreparedTeacher, target: Architecture, dtype: torch.dtype, seed: int) -> CausalLM:
    """Build the same shape with transformers' own random initialisation, as a baseline.

    Args:
        prepared: The teacher whose config it takes over.
        target: Its shape.
        dtype: Of the weights.
        seed: Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(**student_config(prepared, target))
        model: CausalLM = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model
