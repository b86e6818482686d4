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

_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a safetensors header says of one tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's data."""
        count = 1
        for size in self.shape:
            count *= size
        return count * _DTYPE_BYTES.get(self.dtype, 1)


def weight_files(folder: Path) -> list[Path]:
    """Return the folder's safetensors files in the index's order, or the single one.

    Raises:
        CheckpointError: If there is none, or one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
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
            headers[name] = TensorHeader(file, tuple(entry["shape"]), entry["dtype"])
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
