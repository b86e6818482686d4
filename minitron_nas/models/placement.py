"""Where the layers of a model lie that is larger than the device it computes on.

transformers and accelerate do the rest: a layer that lies on another device computes there, and one in main memory or
in its file comes to the first device whenever text goes through it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from tempfile import gettempdir
from typing import TypeAlias

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.execution.device import available_bytes, compute_dtype, pick_device, total_bytes
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.config import read_architecture, read_config
from minitron_nas.models.outline import Outline
from minitron_nas.models.stock import filled_config
from minitron_nas.settings import about_bytes

Place: TypeAlias = int | str
"""As accelerate names them: the number of a GPU, `cpu`, or `disk`."""

_FRACTION_OF_SMALL, _FRACTION_OF_LARGE, _BYTES_OF_LARGE = 0.5, 0.2, 1 << 30
"""Of the weights, for what loading and a forward pass need beside them; of large ones a smaller part, and so much."""
_CPU, _DISK = "cpu", "disk"


def running_bytes(weight_bytes: int) -> int:
    """Return the memory that running a model takes, its weights included.

    Args:
        weight_bytes: In the type that it is computed in.
    """
    beside = min(_FRACTION_OF_SMALL * weight_bytes, _FRACTION_OF_LARGE * weight_bytes + _BYTES_OF_LARGE)
    return weight_bytes + int(beside)


def whole_model_bytes(model: Checkpoint | Outline | Path) -> int:
    """Return the memory that running a whole model takes, in the type that this process computes in.

    Args:
        model: The model, or its stock folder.
    """
    if isinstance(model, Path):
        architecture, layout = read_architecture(model, read_config(model))
    else:
        architecture, layout = model.architecture, model.layout
    return running_bytes(sum(_sizes(architecture, layout, compute_dtype(pick_device()).itemsize)))


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
    if running_bytes(sum(sizes)) <= rooms[0][1]:
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
    free = [_weight_bytes(num_bytes) for _, num_bytes in rooms]
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


def is_larger_than_device(path: Path) -> bool:
    """Whether a model would not run on this process' device even if nothing else lay there.

    Args:
        path: A stock folder.
    """
    return whole_model_bytes(path) > total_bytes(pick_device())


def about_spread(path: Path) -> str:
    """Say where the layers of a model lie that is larger than this process' device; nothing where that has room.

    Args:
        path: A stock folder.
    """
    places = find_places(path)
    if places is None:
        return ""
    _, layout = read_architecture(path, read_config(path))
    told, rewritten = _about_places(places, layout), rewritten_bytes(path, places)
    again = f"; the experts of those in its files are put together in {gettempdir()}, {about_bytes(rewritten)}"
    return told + again if rewritten else told


def rewritten_bytes(path: Path, places: Mapping[str, Place]) -> int:
    """Return what of the layers that stay in files is written once more, for as long as the model is loaded.

    Stock models hold the experts of a layer as one tensor. Where files hold them one by one, transformers puts them
    together in the folder for temporary files.

    Args:
        path: A stock folder.
        places: What `find_places` returned.
    """
    architecture, layout = read_architecture(path, read_config(path))
    alone = (each for each in layout.tensors(architecture) if each.row.per_expert and not each.row.is_slice)
    rewritten = (each for each in alone if places[layout.layer_module.format(layer=each.layer)] == _DISK)
    numbers = sum(prod(each.row.shape(architecture)) for each in rewritten)
    return numbers * compute_dtype(pick_device()).itemsize


def _about_places(places: Mapping[str, Place], layout: Layout) -> str:
    """Say where the layers of a model lie."""
    before = layout.layer_module.partition("{layer}")[0]
    layers = [place for name, place in places.items() if name.startswith(before)]
    words = {_CPU: "in main memory", _DISK: "in its files"}
    counted = (f"{layers.count(each)} {words.get(str(each), f'on GPU {each}')}" for each in dict.fromkeys(layers))
    return (
        f"the model is larger than the memory that it computes in: of its {len(layers)} layers {', '.join(counted)}; "
        "what lies elsewhere is fetched for every batch, which takes longer"
    )


def _sizes(architecture: Architecture, layout: Layout, itemsize: int) -> list[int]:
    """Bytes of each layer, then of all else: parameters, tied ones once, and buffers."""
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


def _weight_bytes(num_bytes: int) -> int:
    """Return the weights that can be run in so much memory."""
    return int(max(num_bytes / (1 + _FRACTION_OF_SMALL), (num_bytes - _BYTES_OF_LARGE) / (1 + _FRACTION_OF_LARGE)))
