"""The prepared teacher: ranked and rotated once, so that every candidate keeps a prefix of each ranking."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.models.config import read_architecture, read_config
from minitron_nas.models.expected import ExpectedTensors
from minitron_nas.models.text_part import read_text_headers
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.rotation import Rotation
from minitron_nas.pruning.settings import RIDGE
from minitron_nas.storage.atomic import read_json, whole_folder, write_json
from minitron_nas.storage.weights import TensorHeader

_ORDER = "order.safetensors"
_ROTATION = "rotation.safetensors"
_MOMENTS = "moments"
_SETTINGS = "settings.json"


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
        moments: The `TensorFolder` of the second moments of what output projections read; None to repair nothing.
        ridge: Strength of the penalty of the repair.
        merge_heads: Whether query heads that stay take over something of those that leave.
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
    ridge: float = RIDGE
    merge_heads: bool = False

    @classmethod
    def open(cls, path: Path, folder: Path) -> Self:
        """Open a checkpoint that has passed its check.

        Args:
            path: The checkpoint.
            folder: What `write_prepared` wrote.
        """
        config = read_config(path)
        architecture, layout = read_architecture(path, config)
        expected = ExpectedTensors.of(architecture, layout)
        headers = expected.sliced(expected.named(read_text_headers(path)))
        order = PruningOrder.load(folder / _ORDER)
        rotation = Rotation.load(folder / _ROTATION) if (folder / _ROTATION).is_file() else None
        moments = folder / _MOMENTS if (folder / _MOMENTS).is_dir() else None
        settings = read_json(folder / _SETTINGS)
        return cls(path, config, architecture, layout, headers, folder, order, rotation, moments, **settings)

    def settled(self, target: Architecture) -> Architecture:
        """Return a candidate's shape with the kinds of the layers that its ranking keeps, in their order.

        Args:
            target: A shape no larger than the teacher's.
        """
        kept = self.order.kept_layers(target.num_hidden_layers)
        return replace(target, layer_kinds=self.architecture.with_layers(kept).layer_kinds)

    def to_dict(self) -> dict[str, str]:
        """Return where it lies, by absolute paths, as a worker in another folder opens it."""
        return {"path": str(self.path.absolute()), "folder": str(self.folder.absolute())}

    @classmethod
    def from_dict(cls, places: Mapping[str, str]) -> Self:
        """Open what `to_dict` names."""
        return cls.open(Path(places["path"]), Path(places["folder"]))


def write_prepared(
    folder: Path,
    order: PruningOrder,
    rotation: Rotation | None = None,
    moments: Path | None = None,
    ridge: float = RIDGE,
    merge_heads: bool = False,
) -> None:
    """Keep what was prepared, whole or not at all.

    Args:
        folder: Where it goes.
        order: Which units leave first.
        rotation: The basis in which hidden channels are cut; None where they are selected.
        moments: A `TensorFolder` of the second moments of what output projections read, which is moved; None to
            repair nothing.
        ridge: Strength of the penalty of the repair.
        merge_heads: Whether query heads that stay take over something of those that leave.
    """
    with whole_folder(folder) as partial:
        order.save(partial / _ORDER)
        write_json(partial / _SETTINGS, {"ridge": ridge, "merge_heads": merge_heads})
        if rotation is not None:
            rotation.save(partial / _ROTATION)
        if moments is not None:
            shutil.move(moments, partial / _MOMENTS)
