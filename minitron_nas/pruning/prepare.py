"""The prepared teacher: sorted once, so that every candidate is a prefix slice of it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors.torch import save_file
from torch import Tensor

from minitron_nas.architecture.layout import Layout, TensorRow
from minitron_nas.architecture.spec import Architecture
from minitron_nas.families.catalog import layout_of
from minitron_nas.families.checkpoint import Checkpoint
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.storage.atomic import read_json, require_free_bytes, whole_folder, write_json
from minitron_nas.storage.weights import open_weights, read_headers, weight_files

_ORDER = "order.safetensors"
_SOURCE = "source.json"


@dataclass(frozen=True, slots=True)
class PreparedTeacher:
    """A sorted teacher on disk.

    Attributes:
        path: Folder with sorted safetensors, the order, and the teacher's config.
        config: The teacher's `config.json`.
        architecture: The teacher's shape.
        order: How it was sorted.
    """

    path: Path
    config: dict[str, Any]
    architecture: Architecture
    order: PruningOrder

    @property
    def layout(self) -> Layout:
        """The family's table."""
        return layout_of(self.architecture.model_type)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Open what `prepare` wrote."""
        source = read_json(path / _SOURCE)
        architecture = Architecture(**source["architecture"])
        return cls(path, source["config"], architecture, PruningOrder.load(path / _ORDER))


def prepare(teacher: Checkpoint, order: PruningOrder, folder: Path) -> PreparedTeacher:
    """Write the sorted teacher, one weight file at a time.

    Args:
        teacher: The checkpoint to sort; it stays as it is.
        order: From its scores.
        folder: Where the sorted teacher goes; it appears when it is whole.

    Raises:
        DiskSpaceError: If the disk cannot hold a copy of the teacher.
    """
    rows = {name: (row, layer or 0) for name, row, layer in teacher.layout.tensors(teacher.architecture)}
    headers = read_headers(teacher.path)
    needed = sum(header.num_bytes for header in headers.values())
    require_free_bytes(folder, needed, "the sorted copy of the teacher")
    with whole_folder(folder) as partial, open_weights(teacher.path) as weights:
        for file in weight_files(teacher.path):
            names = [name for name, header in headers.items() if header.file == file and name in rows]
            tensors = {name: _sorted(weights.tensor(name), *rows[name], order, teacher.architecture) for name in names}
            save_file(tensors, partial / file.name, metadata={"format": "pt"})
        index = teacher.path / "model.safetensors.index.json"
        if index.is_file():
            shutil.copyfile(index, partial / index.name)
        order.save(partial / _ORDER)
        write_json(partial / _SOURCE, {"config": teacher.config, "architecture": teacher.architecture.to_dict()})
    return PreparedTeacher.load(folder)


def _sorted(tensor: Tensor, row: TensorRow, layer: int, order: PruningOrder, source: Architecture) -> Tensor:
    for axis, dim in enumerate(row.dims):
        indices = order.sorted_indices(dim, layer, source)
        if indices is not None:
            tensor = tensor.index_select(axis, indices)
    return tensor.contiguous()
