"""Where the layers of a model lie that is larger than the device it computes on.

transformers and accelerate do the rest: a layer that lies on another device computes there, and one in main memory or
in its file comes to the first device whenever text goes through it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.execution.device import available_bytes, compute_dtype, pick_device
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.config import read_architecture, read_config
from minitron_nas.models.outline import Outline
from minitron_nas.models.stock import filled_config

Place: TypeAlias = int | str
"""As accelerate names them: the number of a GPU, `cpu`, or `disk`."""

_MARGIN_FRACTION = 0.2
"""Of the weights, for what loading and a forward pass need beside them."""
_MARGIN_BYTES = 1 << 30
_CPU, _DISK = "cpu", "disk"


def whole_model_bytes(model: Checkpoint | Outline) -> int:
    """Return the memory that running a whole model takes, in the type that this process computes in.

    Args:
        model: The model.
    """
    return _with_margin(model.num_parameters * compute_dtype(pick_device()).itemsize)


def fits_in_memory(model: Checkpoint | Outline, more_bytes: int = 0) -> bool:
    """Whether a whole model can be loaded now, in main memory and on this process' device.

    Args:
        model: The model.
        more_bytes: What is kept beside it.
    """
    places = {torch.device("cpu"), pick_device()}
    return whole_model_bytes(model) + more_bytes <= min(available_bytes(place) for place in places)


def find_places(path: Path) -> dict[str, Place] | None:
    """Return where each part of a model goes that is larger than this process' device; None where that has room.

    Args:
        path: A stock folder.
    """
    config, dtype = read_config(path), compute_dtype(pick_device())
    architecture, layout = read_architecture(path, config)
    sizes = _sizes(architecture, layout, dtype.itemsize)
    rooms = _rooms()
    if _with_margin(sum(sizes)) <= rooms[0][1]:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(filled_config(config))
    return places_of(model, layout, sizes, rooms)


def places_of(
    model: nn.Module, layout: Layout, sizes: Sequence[int], rooms: Sequence[tuple[Place, int]]
) -> dict[str, Place]:
    """Return where each part of a model goes: layers in order into the rooms in order, all else into the first.

    Args:
        model: The model, perhaps without values.
        layout: The table of its family.
        sizes: Bytes of each layer, then those of all else.
        rooms: Places that compute, the first first, and how many bytes of each are free; then main memory. What none
            has room for stays in its file.
    """
    *layers, others = sizes
    free = [_without_margin(num_bytes) for _, num_bytes in rooms]
    free[0] -= others + max(layers)  # a layer that lies elsewhere comes here
    places: dict[str, Place] = dict.fromkeys(_beside_layers(model, layout), rooms[0][0])
    number = 0
    for layer, num_bytes in enumerate(layers):
        while number < len(rooms) and num_bytes > free[number]:
            number += 1
        if number < len(rooms):
            free[number] -= num_bytes
        places[layout.layer_module.format(layer=layer)] = rooms[number][0] if number < len(rooms) else _DISK
    return places


def about_places(places: Mapping[str, Place], layout: Layout) -> str:
    """Say where the layers of a model lie.

    Args:
        places: What `find_places` returned.
        layout: The table of its family.
    """
    before = layout.layer_module.partition("{layer}")[0]
    layers = [place for name, place in places.items() if name.startswith(before)]
    words = {_CPU: "in main memory", _DISK: "in its files"}
    counted = (f"{layers.count(each)} {words.get(str(each), f'on GPU {each}')}" for each in dict.fromkeys(layers))
    return (
        f"the model is larger than the memory that it computes in: of its {len(layers)} layers {', '.join(counted)}; "
        "what lies elsewhere is fetched for every batch, which takes longer"
    )


def _sizes(architecture: Architecture, layout: Layout, itemsize: int) -> list[int]:
    """Bytes of each layer, then of all else."""
    sizes = [0] * (architecture.num_hidden_layers + 1)
    for place in layout.tensors(architecture):
        sizes[-1 if place.layer is None else place.layer] += prod(place.row.shape(architecture)) * itemsize
    return sizes


def _rooms() -> list[tuple[Place, int]]:
    """This process' devices, the one that text comes to first, and main memory behind them."""
    device, cpu = pick_device(), (_CPU, available_bytes(torch.device("cpu")))
    if device.type == "cpu":
        return [cpu]
    alone = "LOCAL_RANK" in os.environ  # other devices are those of other processes
    others = [] if alone else [number for number in range(torch.cuda.device_count()) if number != device.index]
    return [*((number, available_bytes(torch.device("cuda", number))) for number in (device.index, *others)), cpu]


def _beside_layers(model: nn.Module, layout: Layout) -> Iterator[str]:
    """Yield the names of modules and parameters that are no part of a layer and hold none."""
    layers = layout.layer_module.rpartition(".")[0]

    def walk(module: nn.Module, before: str) -> Iterator[str]:
        yield from (before + name for name, _ in module.named_parameters(recurse=False))
        yield from (before + name for name, _ in module.named_buffers(recurse=False))
        for name, child in module.named_children():
            if layers.startswith(f"{before}{name}."):
                yield from walk(child, f"{before}{name}.")
            elif before + name != layers:
                yield before + name

    yield from walk(model, "")


def _with_margin(num_bytes: int) -> int:
    return int(num_bytes * (1 + _MARGIN_FRACTION)) + _MARGIN_BYTES


def _without_margin(num_bytes: int) -> int:
    return int((num_bytes - _MARGIN_BYTES) / (1 + _MARGIN_FRACTION))
