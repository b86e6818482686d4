"""A run folder: its paths, its plan and the lock that keeps a second process out."""

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from minitron_nas.errors import RunFolderError
from minitron_nas.storage.atomic import write_text

_BEFORE_THE_PLAN = (".lock", ".plan.yaml.partial", ".given")
"""What a run may leave before its plan is written."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where everything of a run lies."""

    path: Path

    @property
    def plan(self) -> Path:
        """The resolved plan, with versions and the teacher's fingerprint."""
        return self.path / "plan.yaml"

    @property
    def given(self) -> Path:
        """Where a live teacher is written until the run has accepted it."""
        return self.path / ".given"

    @property
    def teacher(self) -> Path:
        """A teacher that came as a live model: a stock Hugging Face folder."""
        return self.path / "teacher"

    @property
    def corrected(self) -> Path:
        """The teacher after correction: a stock Hugging Face folder."""
        return self.path / "corrected"

    @property
    def ledger(self) -> Path:
        """Which stages are done."""
        return self.path / "ledger.jsonl"

    @property
    def tokens(self) -> Path:
        """Packed calibration, validation and training tokens."""
        return self.path / "tokens"

    def signal(self, teacher: str, part: str) -> Path:
        """What a KD teacher says over one part of the tokens: a cache of it."""
        return self.path / "signals" / teacher / part

    def importance(self, source: str) -> Path:
        """Scores of the model that a size is pruned from."""
        return self.path / "importance" / source

    def prepared(self, source: str) -> Path:
        """Which parts of the model that a size is pruned from leave first, and its rotation."""
        return self.path / "prepared" / source

    def trials(self, size: str) -> Path:
        """Results and checkpoints of a size's screening and tournament."""
        return self.path / "trials" / size

    def student(self, size: str) -> Path:
        """A finished student: a stock Hugging Face folder."""
        return self.path / "students" / size

    def baseline(self, name: str) -> Path:
        """A finished baseline: a stock Hugging Face folder."""
        return self.path / "baselines" / name

    def checkpoints(self, name: str) -> Path:
        """Checkpoints of a distillation that is under way."""
        return self.path / "checkpoints" / name

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            RunFolderError: If it cannot be created or written to, or another process works in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "w")  # noqa: SIM115  # closed below
        except OSError as error:
            raise RunFolderError(
                f"{self.path} cannot be created or written to ({error.strerror}); choose another --out"
            ) from error
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(
                    f"{self.path} is in use by another process; wait for it or choose another --out"
                ) from None
            yield

    def refuse_foreign(self) -> None:
        """Refuse a folder that holds something but no run.

        Raises:
            RunFolderError: If the folder is not empty and has no plan.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; choose another --out")
        others = [entry.name for entry in self.path.iterdir() if entry.name not in _BEFORE_THE_PLAN]
        if others and not self.plan.exists():
            raise RunFolderError(
                f"{self.path} holds other files ({', '.join(sorted(others)[:3])}) but no plan.yaml of a run; choose an "
                "empty or new --out"
            )

    def write_plan(
        self,
        plan: Mapping[str, Any],
        about: Mapping[str, Any],
        deciding: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        """Write the resolved plan, or check that it decides the same as the one that the folder was begun with.

        What it says on how work is done takes the place of what was said before. As long as no stage has
        finished, so does all of it.

        Args:
            plan: Plain values.
            about: What stands beside the plan: versions, teacher.
            deciding: Returns what must not change.

        Raises:
            RunFolderError: If the folder was begun with another plan or teacher; says the difference.
        """
        self.refuse_foreign()
        wanted = {"plan": dict(plan), **about}
        if not self.plan.exists() or not self.ledger.exists():
            write_text(self.plan, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
            return
        found = yaml.safe_load(self.plan.read_text(encoding="utf-8"))
        wanted = yaml.safe_load(yaml.safe_dump(wanted))
        if changes := list(_differences(found, wanted, deciding)):
            raise RunFolderError(
                f"{self.path} was begun with another plan: {'; '.join(changes)}; go back to the plan that it was begun "
                "with, or choose another --out"
            )
        if found["plan"] != wanted["plan"]:
            content = yaml.safe_dump({**found, "plan": wanted["plan"]}, sort_keys=False, allow_unicode=True)
            write_text(self.plan, content)


def require_new_folder(path: Path) -> None:
    """Refuse to write where something lies already.

    Raises:
        RunFolderError: If the path is a file or a folder that is not empty.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunFolderError(f"{path} exists and is not empty; choose an empty or new --out")


def _differences(
    found: Mapping[str, Any], wanted: Mapping[str, Any], deciding: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Iterator[str]:
    old = {**deciding(found["plan"]), "teacher fingerprint": found["teacher"]["fingerprint"]}
    new = {**deciding(wanted["plan"]), "teacher fingerprint": wanted["teacher"]["fingerprint"]}
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
