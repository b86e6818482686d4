"""`Family`: the result of a run, read from its folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from minitron_nas.errors import RunFolderError
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.storage.schemas import CANDIDATES, CURVES, EVALUATIONS, TRIALS, Table
from minitron_nas.storage.tables import read_frame, read_rows


@dataclass(frozen=True, slots=True)
class Member:
    """One model of a family.

    Attributes:
        name: "teacher" or the size's label.
        path: A stock Hugging Face folder.
        num_parameters: In total, tied embeddings counted once.
        kl_nats: Validation KL to the teacher, per token.
        perplexity: On the validation text.
    """

    name: str
    path: Path
    num_parameters: int
    kl_nats: float
    perplexity: float


class Family:
    """The result of a run, read from its folder."""

    def __init__(self, path: str | Path) -> None:
        """Open a run folder.

        Raises:
            RunFolderError: If no run was begun there.
        """
        self.path = Path(path)
        if not RunFolder(self.path).plan.is_file():
            raise RunFolderError(f"there is no run in {self.path}: it has no plan.yaml; give the out folder of a build")

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
        return f"Family({', '.join(f'{m.name}: {m.path}' for m in self.members)})"

    def _table(self, table: Table) -> pd.DataFrame:
        return read_frame(self.path, table)

    def _members(self, role: str) -> list[Member]:
        rows = [row for row in read_rows(self.path, EVALUATIONS) if row["role"] == role]
        return [
            Member(row["model"], self.path / row["path"], row["num_parameters"], row["kl_nats"], row["perplexity"])
            for row in sorted(rows, key=lambda row: -row["num_parameters"])
        ]
