"""`Family`: the result of a run, read from its folder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from minitron_nas.errors import RunFolderError
from minitron_nas.storage.copies import local, local_model
from minitron_nas.storage.remote import as_uri
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.storage.schemas import CANDIDATES, CURVES, EVALUATIONS, TRIALS, Table
from minitron_nas.storage.tables import read_frame, read_rows


@dataclass(frozen=True, slots=True)
class Member:
    """One model of a family.

    Attributes:
        name: "teacher" or the size's label.
        place: Its folder, or what fetches it.
        num_parameters: In total, tied embeddings counted once.
        kl_nats: Validation KL to the teacher, per token.
        perplexity: On the validation text.
    """

    name: str
    place: Path | Callable[[], Path] = field(repr=False)
    num_parameters: int
    kl_nats: float
    perplexity: float

    @property
    def path(self) -> Path:
        """A stock Hugging Face folder; of a run at a URI it is fetched when this is asked for."""
        return self.place() if callable(self.place) else self.place


class Family:
    """The result of a run, read from its folder, or from a copy of what lies at its URI."""

    def __init__(self, path: str | Path) -> None:
        """Open a run folder.

        Args:
            path: The folder, or a URI.

        Raises:
            RunFolderError: If no run was begun there.
            MachineError: If a URI cannot be reached.
        """
        self._place, self.path = path, local(path)
        if not RunFolder(self.path).plan.is_file():
            raise RunFolderError(f"there is no run in {path}: it has no plan.yaml; give the out folder of a build")

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """The teacher, the students and their baselines, measured."""
        return self._table(EVALUATIONS)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per rung of every trial."""
        return self._table(TRIALS)

    @cached_property
    def candidates(self) -> pd.DataFrame:
        """Every legal shape and what became of it."""
        return self._table(CANDIDATES)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Training and validation curves."""
        return self._table(CURVES)

    @property
    def teacher(self) -> Member:
        """The teacher.

        Raises:
            RunFolderError: If the run has not measured it yet.
        """
        found = self._members("teacher")
        if not found:
            raise RunFolderError(
                f"the run in {self.path} is not finished: its stage 'teacher evaluate' is missing; repeat the build, "
                "which goes on where it was"
            )
        return found[0]

    @property
    def members(self) -> list[Member]:
        """The students, largest first."""
        return self._members("student")

    @property
    def report(self) -> Path:
        """The HTML report."""
        return RunFolder(self.path).report

    def __repr__(self) -> str:
        """Name the members."""
        told = (f"{row['model']}: {self.path / row['path']}" for row in self._rows("student"))
        return f"Family({', '.join(told)})"

    def _table(self, table: Table) -> pd.DataFrame:
        return read_frame(self.path, table)

    def _members(self, role: str) -> list[Member]:
        return [
            Member(row["model"], self._folder_of(row["path"]), row["num_parameters"], row["kl_nats"], row["perplexity"])
            for row in self._rows(role)
        ]

    def _rows(self, role: str) -> list[dict[str, Any]]:
        rows = (row for row in read_rows(self.path, EVALUATIONS) if row["role"] == role)
        return sorted(rows, key=lambda row: -row["num_parameters"])

    def _folder_of(self, name: str) -> Path | Callable[[], Path]:
        inside = not Path(name).is_absolute() and as_uri(self._place) is not None
        return partial(local_model, self._place, name) if inside else self.path / name
