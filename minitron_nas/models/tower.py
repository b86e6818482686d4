"""What stands beside the text part of a wrapper that lies in a folder: what it feeds, and how much it takes."""

from dataclasses import replace
from math import prod
from pathlib import Path

from transformers import AutoConfig

from minitron_nas.families.wrappers import Tower
from minitron_nas.models.special_floats import plain_floats
from minitron_nas.models.text_part import wrapper_in
from minitron_nas.storage.foreign import read_object
from minitron_nas.storage.weights import INDEX, SINGLE, TensorHeader, read_headers

_CONFIG = "config.json"


def tower_in(folder: Path) -> Tower | None:
    """Return what stands beside the text part that a folder holds, None where it holds another model.

    transformers fills in what its `config.json` leaves out.

    Args:
        folder: A folder whose config `read_config` takes; its weights need not be there.
    """
    wrapper = wrapper_in(folder)
    if wrapper is None:
        return None
    filled = AutoConfig.for_model(**plain_floats(read_object(folder / _CONFIG)))
    tensors = tower_tensors(folder).values() if _has_weights(folder) else ()
    return replace(
        wrapper.tower(filled.to_dict()),
        num_parameters=sum(prod(header.shape) for header in tensors),
        num_bytes=sum(header.num_bytes for header in tensors),
    )


def tower_tensors(folder: Path) -> dict[str, TensorHeader]:
    """Read the headers of what is kept as it is beside another text part; none of a folder that holds no wrapper.

    Args:
        folder: A stock folder.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    wrapper, headers = wrapper_in(folder), read_headers(folder)
    return {name: headers[name] for name in wrapper.other_names(headers)} if wrapper is not None else {}


def _has_weights(folder: Path) -> bool:
    """Whether all files of the weights are there; of a download that was interrupted there may be some."""
    if not (folder / INDEX).is_file():
        return (folder / SINGLE).is_file()
    named = read_object(folder / INDEX).get("weight_map")
    return isinstance(named, dict) and all((folder / str(file)).is_file() for file in named.values())
