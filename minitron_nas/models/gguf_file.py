"""`GgufFile`: what a GGUF file says and holds, all parts of it."""

import hashlib
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray

from minitron_nas.errors import CheckpointError, MinitronNasError, TeacherNotFoundError
from minitron_nas.models.gguf_header import check_header

_MAGIC = b"GGUF"
_PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_PLAIN_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
_HASH_DIGITS = 16
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    StrictDataclassError,
    struct.error,
)
_SPLIT = "split.count"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a GGUF file.

    Attributes:
        shape: The slowest dimension first, as torch has it.
        is_plain: Whether it is stored as floating point.
        num_bytes: Its size in the file.
        values: Reads it as float32.
    """

    shape: tuple[int, ...]
    is_plain: bool
    num_bytes: int
    values: Callable[[], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file, opened.

    Attributes:
        path: The file, the first part of several.
        keys: What it says, by its keys; long lists are left out.
        tensors: What it holds, by its names.
    """

    path: Path
    keys: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, parts: list[Path]) -> Self:
        """Open all parts of a file.

        Args:
            parts: What `parts_of` returned.

        Raises:
            CheckpointError: If a part cannot be read, or two hold a tensor of the same name.
        """
        from gguf import GGUFReader  # deferred: few teachers are GGUF files

        keys: dict[str, Any] = {}
        tensors: dict[str, GgufTensor] = {}
        for part in parts:
            with reading(part):
                check_header(part)
                reader = GGUFReader(part)
                _refuse_overlaps(reader.tensors)
                said = {name: _value(field) for name, field in reader.fields.items()}
                found = {tensor.name: _tensor(tensor) for tensor in reader.tensors}
            if (twice := tensors.keys() & found.keys()) or len(found) != len(reader.tensors):
                raise CheckpointError(f"{part} holds a tensor for the second time: {sorted(twice)}; download it again")
            if (count := said.get(_SPLIT) or 1) != len(parts):
                raise CheckpointError(
                    f"{part} is one of {count} parts of a model ({_SPLIT}); keep all of them in one folder under the "
                    "names that llama-gguf-split gave them, NAME-00001-of-0000N.gguf, and give the first"
                )
            keys, tensors = {**said, **keys}, {**tensors, **found}
        return cls(parts[0], keys, tensors)

    @property
    def is_quantised(self) -> bool:
        """Whether any tensor is stored in fewer bits than floating point."""
        return not all(tensor.is_plain for tensor in self.tensors.values())


def _refuse_overlaps(tensors: list[Any]) -> None:
    """Refuse tensors that share bytes."""
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.data_offset, tensor.n_bytes)):
        if tensor.data_offset < end and tensor.n_bytes:
            raise ValueError(f"its tensors {before!r} and {tensor.name!r} share bytes")
        end, before = max(end, int(tensor.data_offset + tensor.n_bytes)), tensor.name


def parts_of(file: Path) -> list[Path]:
    """Return the parts of a GGUF file, itself alone unless its name counts them.

    Raises:
        TeacherNotFoundError: If it does not exist, or a part of it does not.
        CheckpointError: If one is not a GGUF file.
    """
    match = _PART.fullmatch(file.stem)
    numbers = range(1, int(match["count"]) + 1) if match else ()
    name = "{}-{:05d}-of-{}{}"
    parts = [file.with_name(name.format(match["name"], n, match["count"], file.suffix)) for n in numbers if match]
    for part in [file, *parts]:
        if not part.is_file():
            raise TeacherNotFoundError(f"{part} does not exist; give the path of a .gguf file, with all of its parts")
        if not is_gguf(part):
            raise CheckpointError(f"{part} is not a GGUF file; download it again")
    return parts or [file]


def is_gguf(file: Path) -> bool:
    """Whether a path is a file that begins as GGUF files do, whatever its name."""
    if not file.is_file():
        return False
    with file.open("rb") as handle:
        return handle.read(len(_MAGIC)) == _MAGIC


def digest_of(parts: list[Path]) -> str:
    """Return 16 hexadecimal digits of the content of all parts."""
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as handle:
            hashlib.file_digest(handle, lambda: digest)
    return digest.hexdigest()[:_HASH_DIGITS]


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn whatever a file's reader stumbles over into one error of ours.

    Args:
        file: The file, for the message.

    Raises:
        CheckpointError: Instead of the reader's own.
    """
    try:
        yield
    except MinitronNasError:
        raise
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{file} cannot be read as a model ({' '.join(str(error).split()) or type(error).__name__}); download it "
            "again, or give a safetensors folder of the model"
        ) from error


def _value(field: Any) -> Any:
    """The value of a key; of a list of strings, which may be a vocabulary, its length."""
    is_list = len(field.types) > 1
    if is_list and field.types[-1].name == "STRING":
        return len(field.data)
    value = field.contents()
    if field.types[-1].name == "FLOAT32":
        return [short(each) for each in value] if is_list else short(value)
    return value


def short(value: float) -> float:
    """Return the shortest decimal that float32 cannot tell from a number: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tensor(tensor: Any) -> GgufTensor:
    from gguf import dequantize  # deferred, as above

    shape = tuple(int(size) for size in reversed(tensor.shape))

    def values() -> NDArray[np.float32]:
        read: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
        return read.reshape(shape)

    return GgufTensor(shape, tensor.tensor_type.name in _PLAIN_TYPES, int(tensor.n_bytes), values)
