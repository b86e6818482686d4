"""`TensorFolder`: tensors by name, of which one at a time is in memory; each is whole or absent."""

from collections.abc import Iterator, MutableMapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from minitron_nas.storage.atomic import whole_file
from minitron_nas.storage.weights import is_whole

_SUFFIX = ".safetensors"
_KEY = "tensor"


class TensorFolder(MutableMapping[str, Tensor]):
    """A mapping that writes each tensor to a file of its own and reads it when it is asked for.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        """Open a folder, which need not exist before the first tensor."""
        self.path = path

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor."""
        file = self._file(name)
        if not file.is_file():
            raise KeyError(name)
        return load_file(file)[_KEY]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        """Write a tensor over what has its name."""
        with whole_file(self._file(name)) as partial:
            save_file({_KEY: tensor.contiguous()}, partial)

    def __delitem__(self, name: str) -> None:
        """Remove a file."""
        if name not in self:
            raise KeyError(name)
        self._file(name).unlink()

    def __contains__(self, name: object) -> bool:
        """Whether there is a file, of the length that it says."""
        return is_whole(self._file(str(name)))

    def __iter__(self) -> Iterator[str]:
        """Yield the names in alphabetic order."""
        return (file.name.removesuffix(_SUFFIX) for file in sorted(self.path.glob(f"*{_SUFFIX}")))

    def __len__(self) -> int:
        """Count the files."""
        return sum(1 for _ in self)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}{_SUFFIX}"
