"""A run folder: its paths, its plan and the lock that keeps a second process out."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from minitron_nas.errors import MinitronNasError, RunFolderError
from minitron_nas.storage.atomic import remove, write_text
from minitron_nas.storage.locks import held, one_at_a_time, refuse_held, release
from minitron_nas.storage.machine import landing, require_writable
from minitron_nas.storage.plain_yaml import load_yaml
from minitron_nas.storage.remote import as_path, as_uri

LAYOUT = 2
"""Of a run folder; a run of another layout is not gone on with."""

_LAYOUT_KEY = "layout"
_TEACHER = "teacher fingerprint"
_TEXT = "fingerprint of the text (size, time of change and samples of its files)"

_LOCK = ".lock"
_TABLES_LOCK = ".tables.lock"
_BEFORE_THE_PLAN = (_LOCK, f"{_LOCK}.writers", ".plan.yaml.partial", "work")
"""What a run may leave before its plan is written."""

_MARKS = (
    (_LOCK,),  # of a run from its first moment on, of a step that may go on, of what a teacher says
    ("plan.yaml", "ledger.jsonl"),  # of a run that came from elsewhere
    ("config.json", "*.safetensors"),
    ("scores.safetensors",),
    ("comparison.parquet",),
)
"""What lies in each kind of folder that a command writes."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where everything of a run lies."""

    path: Path

    @property
    def plan(self) -> Path:
        """The resolved plan, with versions and the teacher's fingerprint."""
        return self.path / "plan.yaml"

    @property
    def work(self) -> Path:
        """What is temporary; emptied whenever a process takes the lock."""
        return self.path / "work"

    @property
    def now(self) -> Path:
        """What the run does while it is worked on."""
        return self.work / "now.json"

    @property
    def given(self) -> Path:
        """Where a live teacher is written until the run has accepted it."""
        return self.work / "given"

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

    def screened(self, size: str) -> Path:
        """What the screening of a size has measured."""
        return self.path / "screened" / f"{size}.json"

    def all_screened(self) -> list[Path]:
        """What the screenings have measured that have ended, in the order of their sizes' names."""
        return sorted((self.path / "screened").glob("*.json"))

    def trials(self, size: str) -> Path:
        """Results and checkpoints of a size's screening and tournament while they are under way."""
        return self.path / "trials" / size

    def rates(self, size: str) -> Path:
        """Results and checkpoints of a size's learning rates while they are tried."""
        return self.path / "trials" / f"{size}-rate"

    def starts(self, size: str) -> Path:
        """Untrained students of a size, as trials and trainings begin with them, while it is under way."""
        return self.path / "checkpoints" / f"{size}-starts"

    def student(self, size: str) -> Path:
        """A finished student: a stock Hugging Face folder."""
        return self.path / "students" / size

    @property
    def aligned(self) -> Path:
        """Where members lie that were aligned after the run; the run itself writes nothing there."""
        return self.path / "aligned"

    def baseline(self, name: str) -> Path:
        """A finished baseline: a stock Hugging Face folder."""
        return self.path / "baselines" / name

    def checkpoints(self, name: str) -> Path:
        """Checkpoints of a distillation that is under way."""
        return self.path / "checkpoints" / name

    def rows(self, stage: str) -> Path:
        """The rows that a stage adds to the tables of the run."""
        return self.path / "rows" / stage.replace(" ", "-")

    @property
    def latency(self) -> Path:
        """What predicts the seconds of shapes, where the run measured it itself."""
        return self.path / "latency.json"

    @property
    def study(self) -> Path:
        """The search as an Optuna study."""
        return self.path / "study.journal"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            RunFolderError: If it cannot be created or written to, or another command works in it.
        """
        with held(self.path / _LOCK, self.path):
            refuse_held(_lock_beside(landing(self.path)), self.path)
            self._empty_work()
            try:
                yield
            finally:
                self._empty_work()

    def telling(self) -> AbstractContextManager[None]:
        """Keep others out of the ledger, the tables and the report while the block reads or changes them.

        Raises:
            RunFolderError: If the folder cannot be written to.
        """
        return one_at_a_time(self.path / _TABLES_LOCK)

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """Give a folder on the run's disk that goes at the end of the block, or with the next process at the latest."""
        self.work.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.work) as folder:
            yield Path(folder)

    def written_bytes(self) -> int:
        """Return the bytes of what stages have left, or go on with; what is temporary does not count."""
        return sum(
            file.stat().st_size
            for file in self.path.rglob("*")
            if file.is_file() and self.work not in file.parents and not _is_partial(file.relative_to(self.path))
        )

    def _empty_work(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def refuse_foreign(self) -> None:
        """Refuse a folder that holds something but no run.

        Raises:
            RunFolderError: If the folder is not empty and has no plan, or its layout is another version's.
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
        if self.plan.exists():
            self.read_plan()

    def read_plan(self) -> dict[str, Any]:
        """Read what `write_plan` has written.

        Raises:
            RunFolderError: If it cannot be read, or the folder was laid out by another version.
        """
        try:
            found = load_yaml(self.plan.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise RunFolderError(
                f"{self.plan} cannot be read ({reason}); restore it, or choose another --out"
            ) from None
        if not isinstance(found, dict):
            raise RunFolderError(f"{self.plan} says nothing of a plan; restore it, or choose another --out")
        if _LAYOUT_KEY not in found and "plan" not in found:
            raise RunFolderError(f"{self.plan} is a plan that no build has written; choose an empty or new --out")
        if found.get(_LAYOUT_KEY) != LAYOUT:
            raise RunFolderError(
                f"{self.path} was laid out by another version of minitron_nas ({self.plan.name} does not say "
                f"{_LAYOUT_KEY}: {LAYOUT}), and cannot be gone on with; choose another --out (`minitron-nas report` "
                "still reads its tables)"
            )
        missing = [key for key in ("plan", "teacher", "data") if not isinstance(found.get(key), dict)]
        if missing:
            raise RunFolderError(f"{self.plan} lacks {', '.join(missing)}; restore it, or choose another --out")
        return found

    def has_begun_with(self, teacher_fingerprint: str) -> bool:
        """Whether a run of a teacher was begun here, whose every value was looked at then."""
        return self.plan.exists() and bool(self.read_plan()["teacher"].get("fingerprint") == teacher_fingerprint)

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
            about: What stands beside the plan: versions, teacher, data.
            deciding: Returns what must not change.

        Raises:
            RunFolderError: If the folder was begun with another plan, teacher or text; says the difference.
        """
        self.refuse_foreign()
        wanted = {_LAYOUT_KEY: LAYOUT, "plan": dict(plan), **about}
        if not self.plan.exists() or not self.ledger.exists():
            write_text(self.plan, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
            return
        found = self.read_plan()
        wanted = yaml.safe_load(yaml.safe_dump(wanted))
        if changes := list(_differences(found, wanted, deciding)):
            raise RunFolderError(
                f"{self.path} was begun with another plan: {'; '.join(changes)}; go back to the plan that it was begun "
                "with, or choose another --out"
            )
        if found["plan"] != wanted["plan"]:
            content = yaml.safe_dump({**found, "plan": wanted["plan"]}, sort_keys=False, allow_unicode=True)
            write_text(self.plan, content)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Hold a folder that is to be made, so that no other command makes it too; gives one for what is temporary.

    The temporary folder lies beside it and goes at the end, or with the next command at the latest.

    Args:
        path: The folder.

    Raises:
        RunFolderError: If something lies there already, another command makes it, or its place cannot be written to.
    """
    path = require_new_folder(path).absolute()
    lock, temporary = _lock_beside(path), path.with_name(f".{path.name}.tmp")
    with held(lock, path):
        require_new_folder(path)
        remove(temporary)
        try:
            temporary.mkdir()
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            release(lock)


@contextmanager
def beginning(path: Path) -> Iterator[None]:
    """Make a working folder, and leave nothing of it if what was asked for is refused in this block.

    Args:
        path: The folder; where it was there before, as what a stopped command goes on from, it stays.

    """
    there = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / _LOCK).touch()
        yield
    except MinitronNasError:
        if not there:
            shutil.rmtree(path, ignore_errors=True)
        raise


def _lock_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def holds_run(path: Path) -> bool:
    """Whether a folder is that of a run, and no model.

    Args:
        path: Any path.
    """
    return RunFolder(path).plan.is_file() and not (path / "config.json").is_file()


def is_written_by_a_command(folder: Path) -> bool:
    """Whether a folder is a run's, a model's, or what a step has made or goes on from, and holds no text.

    Args:
        folder: Any folder; the answer is the same from the first moment of a run to its last, and afterwards.
    """
    return any(all(any(folder.glob(name)) for name in names) for names in _MARKS)


def run_joined_by(path: Path) -> RunFolder | None:
    """Return the run that a model joins as an aligned member, which is written to its `aligned/`; None without one.

    Args:
        path: The model's folder, there or not.
    """
    parent = path.absolute().parent
    run = RunFolder(parent.parent)
    return run if run.aligned == parent and holds_run(run.path) else None


def require_new_folder(path: Path) -> Path:
    """Return the folder that is to be written, which is what a link stands for.

    Args:
        path: As it was given.

    Raises:
        RunFolderError: If the path is a URI, a file or a folder that is not empty, or another disk begins there.
        MachineError: If no folder can be made there; says why.
    """
    if (uri := as_uri(path)) is not None:
        raise RunFolderError(f"--out {uri} is a URI, which only a whole run is written to; choose a folder")
    path = as_path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunFolderError(f"{path} exists and is not empty; choose an empty or new --out")
    path = landing(path)
    if path.is_mount():  # which nothing can take the place of when it is whole
        raise RunFolderError(f"{path} is where a disk is mounted; choose a folder in it as --out")
    require_writable(path.absolute().parent)
    return path


def _differences(
    found: Mapping[str, Any], wanted: Mapping[str, Any], deciding: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Iterator[str]:
    old, new = (
        {
            **deciding(content["plan"]),
            _TEACHER: content["teacher"].get("fingerprint"),
            _TEXT: content["data"].get("fingerprint"),
        }
        for content in (found, wanted)
    )
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield f"{key} was {old.get(key)!r} and is now {new.get(key)!r}{_of_commits(key, found, wanted)}"


def _of_commits(key: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say which commits of the hub two teachers are, if that is what makes the difference."""
    old, new = (content["teacher"].get("revision") for content in (found, wanted))
    if key != _TEACHER or old == new or old is None or new is None:
        return ""
    return f" (commit {old} of the hub, now {new})"


def _is_partial(path: Path) -> bool:
    return any(part.startswith(".") and part.endswith(".partial") for part in path.parts)
