"""Lazy reading of safetensors folders: headers first, tensors and slices on demand."""

import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from minitron_nas.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a safetensors header says of one tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that the folder's index names, sorted, or the single one.

    Raises:
        CheckpointError: If there is none, the index cannot be read, or a file that it names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError):
            raise CheckpointError(f"{index} is no safetensors index, or is cut short; copy it again") from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which its index names; copy it again")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if not single.is_file():
        raise CheckpointError(
            f"{folder} holds no safetensors weights; load the model in transformers and save it again with "
            "save_pretrained, which writes them"
        )
    return [single]


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Read the name, shape and dtype of every tensor of a folder, without its data.

    Raises:
        CheckpointError: If a file is cut short or is no safetensors file.
    """
    headers: dict[str, TensorHeader] = {}
    for file in weight_files(folder):
        try:
            with open(file, "rb") as handle:
                (length,) = struct.unpack("<Q", handle.read(8))
                content = json.loads(handle.read(length))
        except (struct.error, ValueError, MemoryError, OverflowError):
            raise CheckpointError(f"{file} is not a safetensors file, or is cut short; copy it again") from None
        content.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in content.values()), default=0)
        if file.stat().st_size != 8 + length + end:
            raise CheckpointError(f"{file} is cut short ({file.stat().st_size} of {8 + length + end} bytes)")
        for name, entry in content.items():
            begin, stop = entry["data_offsets"]
            headers[name] = TensorHeader(file, tuple(entry["shape"]), entry["dtype"], stop - begin)
    return headers


class Weights:
    """An open safetensors folder."""

    def __init__(self, handles: dict[str, Any]) -> None:
        """Wrap open files; use `open_weights`."""
        self._handles = handles

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._handles)

    def tensor(self, name: str) -> Any:
        """Read a whole tensor (a torch tensor on the CPU)."""
        return self._handles[name].get_tensor(name)

    def slice(self, name: str) -> Any:
        """Return a lazy view; index it to read a part of the tensor."""
        return self._handles[name].get_slice(name)


@contextmanager
def open_weights(folder: Path) -> Iterator[Weights]:
    """Open all safetensors files of a folder for lazy reading."""
    with ExitStack() as stack:
        handles: dict[str, Any] = {}
        for file in weight_files(folder):
            handle = stack.enter_context(safe_open(file, framework="pt"))
            handles |= dict.fromkeys(handle.keys(), handle)
        yield Weights(handles)
