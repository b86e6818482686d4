"""The prepared teacher: ranked and rotated once, so that every candidate keeps a prefix of each ranking."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.families.checks import table_names
from minitron_nas.families.config import read_architecture, read_config
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.rotation import Rotation
from minitron_nas.storage.atomic import require_free_bytes, whole_folder
from minitron_nas.storage.weights import TensorHeader, read_headers

_ORDER = "order.safetensors"
_ROTATION = "rotation.safetensors"
_MOMENTS = "moments.safetensors"


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
        moments: The file of the second moments of what output projections read; None where nothing is repaired.
        ridge: Strength of the penalty of the repair.
    """

    path: Path
    config: dict[str, Any]
    architecture: Architecture
    layout: Layout
    headers: dict[str, TensorHeader]
    folder: Path
    order: PruningOrder
    rotation: Rotation | None = None
    moments: Path | None = None
    ridge: float = 0.0

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
        moments, ridge = folder / _MOMENTS if (folder / _MOMENTS).is_file() else None, 0.0
        if moments is not None:
            with safe_open(moments, framework="pt") as handle:
                ridge = float(handle.metadata()["ridge"])
        return cls(path, config, architecture, layout, headers, folder, order, rotation, moments, ridge)


def write_prepared(
    folder: Path,
    order: PruningOrder,
    rotation: Rotation | None = None,
    moments: Mapping[str, Tensor] | None = None,
    ridge: float = 0.0,
) -> None:
    """Keep what was prepared, whole or not at all.

    Args:
        folder: Where it goes.
        order: Which units leave first.
        rotation: The basis in which hidden channels are cut; None where they are selected.
        moments: Second moments of what output projections read; None to repair nothing.
        ridge: Strength of the penalty of the repair.

    Raises:
        DiskSpaceError: If the disk cannot hold the moments.
    """
    if moments is not None:
        require_free_bytes(folder, sum(moment.nbytes for moment in moments.values()), "second moments for the repair")
    with whole_folder(folder) as partial:
        order.save(partial / _ORDER)
        if rotation is not None:
            rotation.save(partial / _ROTATION)
        if moments is not None:
            save_file(dict(moments), partial / _MOMENTS, metadata={"ridge": str(ridge)})
