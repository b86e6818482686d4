"""The teacher in which what a student leaves out is zero: what the student has to compute."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minitron_nas.architecture.layout import EXPERTS, HIDDEN, Axis, TensorPlace, TensorRow, axis_sizes, dim
from minitron_nas.architecture.spec import Architecture
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.stock import model_from_tensors
from minitron_nas.pruning.compensate import scaled_constants
from minitron_nas.testing.subject import Subject, plain_experts


@contextmanager
def masked(
    subject: Subject, target: Architecture, writers_only: bool = False, tensors: Mapping[str, Tensor] | None = None
) -> Iterator[CausalLM]:
    """Build the teacher in which what leaves is zero, with norms and routers that do not see it.

    RMSNorm over hidden channels needs no help: the surgery makes up for zeros in its mean. LayerNorm
    and norms over heads look at the entries that stay.

    Args:
        subject: The teacher.
        target: The student's shape.
        writers_only: Whether only what writes to the residual stream is zero.
        tensors: The teacher's tensors, if not those that `written_off` gives.
    """
    content = dict(tensors if tensors is not None else written_off(subject, target, writers_only))
    for place in subject.layout.tensors(subject.architecture):
        # Of routers that choose by a sum with it; ERNIE's is a parameter of two dimensions.
        if (place.row.is_buffer and place.row.dims == (EXPERTS,)) or place.row.dims == (dim(), EXPERTS):
            *_, mask = kept_masks(subject, target, place)
            content[place.name] = content[place.name].masked_fill(~mask, float("-inf"))
    model = _with_tensors(subject, content)
    modules = dict(model.named_modules())
    for place in subject.layout.tensors(subject.architecture):
        if place.row.is_norm and (place.row.dims != (HIDDEN,) or subject.layout.norm_centres):
            (mask,) = kept_masks(subject, target, place)
            name = subject.layout.module_of(place.row).format(layer=place.layer)
            if place.layer is not None:  # what is made of embeddings for all layers at once grows with its epsilon
                _set_epsilon(modules[name], subject, target)
            _narrow(modules[name], mask)
    removed = {}
    if subject.architecture.num_experts != target.num_experts:
        for place in subject.layout.tensors(subject.architecture):
            if len(place.row.dims) == 2 and Axis.EXPERTS in place.row.dims[0]:
                (mask, _) = kept_masks(subject, target, place)
                name = subject.layout.module_of(place.row).format(layer=place.layer)
                removed[id(modules[name].get_parameter("weight"))] = ~mask
    with _Router(removed):
        yield model


def place_in_memory(subject: Subject, place: TensorPlace) -> str:
    """Return the name that a tensor has in the loaded model, unless this holds it together with others.

    Args:
        subject: The teacher.
        place: A tensor of the teacher.
    """
    module = subject.layout.module_of(place.row).format(layer=place.layer)
    return f"{module}.{place.row.name.rpartition('.')[2]}"


def written_off(subject: Subject, target: Architecture, writers_only: bool = False) -> dict[str, Tensor]:
    """Return the teacher's tensors with zeros for all that leaves.

    Args:
        subject: The teacher.
        target: The student's shape.
        writers_only: Whether only what writes to the residual stream is zero.
    """
    layout, source, writers = subject.layout, subject.architecture, set(subject.layout.writers())
    layers = subject.prepared.order.kept_layers(target.num_hidden_layers)
    result = {}
    for place in layout.tensors(source):
        row, tensor = place.row, subject.tensors[place.name].clone()
        writes = (
            row.per_layer and not row.is_norm and (row.dims == (HIDDEN,) or layout.writes_hidden(row) or row in writers)
        )
        if not writers_only or writes or not row.per_layer:
            for number, mask in enumerate(kept_masks(subject, target, place)):
                tensor *= mask.view([-1 if number == axis else 1 for axis in range(tensor.dim())])
        if writes and place.layer not in layers:
            tensor.zero_()
        if row.is_buffer and row.dims == (dim(),) and place.layer not in layers:
            tensor.fill_(1)  # what multiplies all that a layer puts out
        result[place.name] = tensor
    return result


def with_noise(
    subject: Subject,
    target: Architecture,
    tensors: Mapping[str, Tensor],
    row: TensorRow,
    wanted: bool,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Add noise to one tensor of every layer: to the entries that stay, or to those that leave.

    Args:
        subject: The teacher.
        target: The student's shape.
        tensors: The teacher's tensors, by name; they stay as they are.
        row: The tensor.
        wanted: Whether the noise goes to the entries that stay.
        generator: Draws the noise.
    """
    pruned = pruned_axes(subject.architecture, target)
    changed = dict(tensors)
    for place in subject.layout.tensors(subject.architecture):
        if place.row is not row:
            continue
        tensor = changed[place.name]
        stays = torch.ones_like(tensor, dtype=torch.bool)
        for number, mask in enumerate(kept_masks(subject, target, place)):
            if pruned & row.dims[number].axes:
                stays &= mask.view([-1 if number == axis else 1 for axis in range(tensor.dim())])
        if pruned == {Axis.EXPERTS}:
            stays[:] = place.expert in subject.prepared.order.kept_experts(place.layer or 0, target.num_experts)
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        changed[place.name] = tensor + noise * (stays if wanted else ~stays)
    return changed


def kept_masks(subject: Subject, target: Architecture, place: TensorPlace) -> list[Tensor]:
    """For each dimension of a tensor of the teacher, which entries the student keeps.

    Args:
        subject: The teacher.
        target: The student's shape.
        place: A tensor of the teacher.
    """
    masks = []
    for dimension, size in zip(place.row.dims, place.row.shape(subject.architecture), strict=True):
        kept = subject.prepared.order.kept_entries(dimension, place, subject.architecture, target)
        mask = torch.ones(size, dtype=torch.bool)
        if kept is not None:
            mask = torch.zeros(size, dtype=torch.bool)
            mask[kept] = True
        masks.append(mask)
    return masks


def pruned_axes(source: Architecture, target: Architecture) -> set[Axis]:
    """Return the axes that a student has fewer entries of.

    Args:
        source: The teacher's shape.
        target: The student's.
    """
    sizes, wanted = axis_sizes(source), axis_sizes(target)
    return {axis for axis in Axis if sizes[axis] != wanted[axis]}


def _with_tensors(subject: Subject, tensors: Mapping[str, Tensor]) -> CausalLM:
    """Build the teacher around other tensors: a copy of it where it holds them as they are stored, or else anew."""
    model = copy.deepcopy(subject.model)
    parameters = dict(model.named_parameters())
    places = list(subject.layout.tensors(subject.architecture))
    names = {place.name: place_in_memory(subject, place) for place in places}
    if set(names.values()) != parameters.keys():
        model = plain_experts(model_from_tensors(dict(subject.prepared.config), dict(tensors), torch.float64))
        model.eval()
        return model
    with torch.no_grad():
        for stored, name in names.items():
            parameters[name].copy_(tensors[stored])
    return model


def _narrow(module: nn.Module, mask: Tensor) -> None:
    """Let a norm look at some entries only, and give zero for the others."""
    if mask.all():
        return
    small = copy.copy(module)
    small._parameters = {
        name: None if parameter is None else nn.Parameter(parameter.detach()[mask])
        for name, parameter in module._parameters.items()
    }
    if hasattr(module, "group_size"):
        vars(small).update(group_size=vars(module)["group_size"] * int(mask.sum()) // len(mask))
    if hasattr(module, "normalized_shape"):
        vars(small).update(normalized_shape=(int(mask.sum()),))

    def forward(inputs: Tensor, *gates: Tensor, **named: Tensor) -> Tensor:
        output = torch.zeros_like(inputs)
        kept = {name: each[..., mask] for name, each in named.items()}
        output[..., mask] = type(module).forward(small, inputs[..., mask], *(each[..., mask] for each in gates), **kept)
        return output

    module.forward = forward


def _set_epsilon(module: nn.Module, subject: Subject, target: Architecture) -> None:
    """Give a norm that is not over hidden channels the epsilon that it shares with those that are, if it shares it."""
    config = subject.prepared.config
    scaled = scaled_constants(config, subject.layout, subject.architecture, target)
    for name in ("variance_epsilon", "eps"):
        for key, epsilon in scaled.items():
            if getattr(module, name, None) == config[key]:
                setattr(module, name, epsilon)


class _Router(TorchFunctionMode):
    """Gives removed experts the logit of minus infinity, where a router multiplies by its weight."""

    def __init__(self, removed: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._removed = removed

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if function is nn.functional.linear and id(args[1]) in self._removed:
            return output.masked_fill(self._removed[id(args[1])], float("-inf"))
        return output
