"""The prepared teacher: ranked once, so that every candidate keeps a prefix of each ranking."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.families.checks import table_names
from minitron_nas.families.config import read_architecture, read_config
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.rotation import Rotation
from minitron_nas.storage.weights import TensorHeader, read_headers


@dataclass(frozen=True, slots=True)
class PreparedTeacher:
    """A teacher's weights on disk with their ranking.

    Attributes:
        path: The folder with config and weights.
        config: Its `config.json`.
        architecture: Its shape.
        layout: The table of its family.
        headers: Where each tensor lies, by the table's names.
        order: Which units leave first.
        order_file: Where that was read from.
        rotation: The basis in which hidden channels are cut; None where they are selected.
    """

    path: Path
    config: dict[str, Any]
    architecture: Architecture
    layout: Layout
    headers: dict[str, TensorHeader]
    order: PruningOrder
    order_file: Path
    rotation: Rotation | None = None

    @classmethod
    def open(cls, path: Path, order_file: Path) -> Self:
        """Open a checkpoint that has passed its check.

        Args:
            path: The folder.
            order_file: What `PruningOrder.save` wrote.
        """
        config = read_config(path)
        architecture, layout = read_architecture(path, config)
        headers = table_names(read_headers(path), architecture, layout)
        return cls(path, config, architecture, layout, headers, PruningOrder.load(order_file), order_file)
