"""The prepared teacher: ranked and rotated once, so that every candidate keeps a prefix of each ranking."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.families.checks import table_names
from minitron_nas.families.config import read_architecture, read_config
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.rotation import Rotation
from minitron_nas.storage.atomic import whole_folder
from minitron_nas.storage.weights import TensorHeader, read_headers


_ORDER = "order.safetensors"
_ROTATION = "rotation.safetensors"


@dataclass(frozen=True, slots=True)
class PreparedTeacher:
    """A teacher's weights on disk with their ranking.

    Attributes:
        path: The folder with config and weights.
        config: Its `config.json`.
        architecture: Its shape.
        layout: The table of its family.
        headers: Where each tensor lies, by the table's names.
        folder: What was prepared, on disk.
        order: Which units leave first.
        rotation: The basis in which hidden channels are cut; None where they are selected.
    """

    path: Path
    config: dict[str, Any]
    architecture: Architecture
    layout: Layout
    headers: dict[str, TensorHeader]
    folder: Path
    order: PruningOrder
    rotation: Rotation | None = None

    @classmethod
    def open(cls, path: Path, folder: Path) -> Self:
        """Open a checkpoint that has passed its check.

        Args:
            path: The checkpoint.
            folder: What `write_prepared` wrote.
        """
        config = read_config(path)
        architecture, layout = read_architecture(path, config)
        headers = table_names(read_headers(path), architecture, layout)
        rotation = Rotation.load(folder / _ROTATION) if (folder / _ROTATION).is_file() else None
        order = PruningOrder.load(folder / _ORDER)
        return cls(path, config, architecture, layout, headers, folder, order, rotation)


def write_prepared(folder: Path, order: PruningOrder, rotation: Rotation | None = None) -> None:
    """Keep what was prepared, whole or not at all.

    Args:
        folder: Where it goes.
        order: Which units leave first.
        rotation: The basis in which hidden channels are cut; None where they are selected.
    """
    with whole_folder(folder) as partial:
        order.save(partial / _ORDER)
        if rotation is not None:
            rotation.save(partial / _ROTATION)
