"""The shape that a command line names: sizes, and the layers to drop."""

import re

from minitron_nas.errors import PlanError

_DROP = "drop_layers"
_SIZE = re.compile(r"[0-9]{1,12}")
_LAYERS = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


def parse_request(shape: str | None, drop_layers: str | None) -> tuple[dict[str, int] | None, list[int] | None]:
    """Read what a command line says of a shape.

    Args:
        shape: As `parse_shape` reads it.
        drop_layers: As `parse_layers` reads it.

    Returns:
        Sizes by name and the layers to drop; None for what is not said.

    Raises:
        PlanError: If either cannot be read, or both name layers.
    """
    sizes, layers = parse_shape(shape) if shape is not None else (None, None)
    if layers is not None and drop_layers is not None:
        raise PlanError("both --shape and --drop-layers name layers to drop; leave one of them out")
    return sizes, parse_layers(drop_layers) if drop_layers is not None else layers


def parse_shape(text: str) -> tuple[dict[str, int], list[int] | None]:
    """Read "hidden_size=504,intermediate_size=1024" or "hidden_size=504,drop_layers=3,20-27".

    Returns:
        Sizes by name, and the layers to drop; None where they are not named.

    Raises:
        PlanError: If a part is neither name=integer nor drop_layers=LAYERS, or a size is named twice.
    """
    shape: dict[str, int] = {}
    layers: list[str] = []
    for part in text.split(","):
        name, separator, value = (word.strip() for word in part.partition("="))
        if (name == _DROP and separator) or (layers and not separator):
            # What follows drop_layers without a name are more of them.
            layers.append(value if separator else part)
        elif name in shape:
            raise PlanError(f"--shape names {name} twice, as {shape[name]} and {value}; keep one")
        elif _SIZE.fullmatch(value):
            shape[name] = int(value)
        else:
            raise PlanError(
                f"--shape {part!r} is not of the form name=integer, such as hidden_size=504, or drop_layers=20-27"
            )
    return shape, parse_layers(",".join(layers)) if layers else None


def parse_layers(text: str) -> list[int]:
    """Read "20-27" or "3,5,20-27"; both ends of a range count.

    Raises:
        PlanError: If a part is neither a layer nor a range.
    """
    layers: list[int] = []
    for part in text.split(","):
        match = _LAYERS.fullmatch(part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise PlanError(f"drop_layers {part!r} is neither a layer nor a range from low to high, such as 20-27")
        layers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return layers
