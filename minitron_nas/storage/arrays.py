"""Arrays that are written row by row while their length is unknown, and memory-mapped when they are used."""

import json
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from minitron_nas.errors import CheckpointError
from minitron_nas.storage.atomic import whole_file
from minitron_nas.storage.weights import file_headers

_HEADER_BYTES = 4096
"""Room for the header, which is written last; safetensors allows it to end in spaces."""

_DTYPES: dict[str, np.dtype[Any]] = {"U16": np.dtype(np.uint16), "I32": np.dtype(np.int32), "I64": np.dtype(np.int64)}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write_arrays(
    path: Path,
    blocks: Iterable[Mapping[str, Any]],
    row_shapes: Mapping[str, tuple[tuple[int, ...], Any]],
    about: Callable[[], Mapping[str, str]],
) -> None:
    """Write arrays of as many rows as come to one safetensors file, whole or not at all.

    Args:
        path: The file.
        blocks: Some rows of every array at a time.
        row_shapes: Shape and type of one row of each array, which are written in this order.
        about: Called at the end for the file's metadata.
    """
    first, *others = row_shapes
    num_rows = 0
    with whole_file(path) as partial, ExitStack() as stack:
        file = stack.enter_context(open(partial, "wb"))
        file.write(b" " * _HEADER_BYTES)
        files = {first: file, **{name: stack.enter_context(TemporaryFile(dir=path.parent)) for name in others}}
        for block in blocks:
            num_rows += len(block[first])
            for name, handle in files.items():
                handle.write(block[name].tobytes())
        header: dict[str, Any] = {"__metadata__": dict(about())}
        start = 0
        for name, (shape, dtype) in row_shapes.items():
            end = start + num_rows * int(np.prod(shape)) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": [num_rows, *shape], "data_offsets": [start, end]}
            start = end
        for name in others:
            files[name].seek(0)
            shutil.copyfileobj(files[name], file, 1 << 20)
        file.seek(0)
        content = json.dumps(header).encode().ljust(_HEADER_BYTES - 8)
        file.write(struct.pack("<Q", len(content)) + content)


def map_arrays(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arrays of a safetensors file, memory-mapped, and its metadata.

    Writing to an array changes it in this process' memory only, never the file.

    Raises:
        CheckpointError: If it is no safetensors file, is cut short, or holds another type than `write_arrays` writes.
    """
    arrays: dict[str, Any] = {}
    for name, header in file_headers(path).items():
        if header.dtype not in _DTYPES:
            raise CheckpointError(
                f"{path} holds {name!r} as {header.dtype}, which minitron_nas writes no arrays in; delete the file and "
                "repeat what wrote it"
            )
        dtype = _DTYPES[header.dtype]
        if header.num_bytes:
            arrays[name] = np.memmap(path, dtype=dtype, mode="c", offset=header.offset, shape=header.shape)
        else:
            arrays[name] = np.empty(header.shape, dtype=dtype)
    with open(path, "rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        about: dict[str, str] = json.loads(handle.read(length)).get("__metadata__", {})
    return arrays, about
