"""The engine: runs a stage once for its inputs, whatever happens to the process, and owns what the stage leaves."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from minitron_nas.errors import RunFolderError
from minitron_nas.execution.preemption import going_on
from minitron_nas.pipeline.display import Display
from minitron_nas.pipeline.mirror import Mirror
from minitron_nas.progress import Progress
from minitron_nas.storage.atomic import remove, whole_folder
from minitron_nas.storage.ledger import Entry, Ledger, fingerprint
from minitron_nas.storage.machine import machine_error
from minitron_nas.storage.outputs import Outputs
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.storage.schemas import RUN_TABLES, Table
from minitron_nas.storage.tables import Row, unite_rows, write_rows


@dataclass(frozen=True, slots=True)
class Done:
    """A finished stage, as those that build on it see it."""

    entry: Entry

    @property
    def result(self) -> Any:
        """The plain values that it returned."""
        return self.entry.result


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage is, before it runs.

    Attributes:
        name: Such as "110M distil".
        title: What it does, for people.
        inputs: Plain values that decide the outcome: settings and fingerprints.
        needs: The stages whose files it reads; what they left decides the outcome too.
        outputs: Files and folders that it leaves.
        costly: Whether outputs that have changed since are refused by name. Those of other stages are made again, as
            are all that are gone.
        self_checked: What the names of outputs end with that carry checksums of their own, which are looked at when
            they are read.
    """

    name: str
    title: str
    inputs: Mapping[str, Any]
    needs: Sequence[Done] = ()
    outputs: Sequence[Path] = ()
    costly: bool = False
    self_checked: str | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the outcome."""
        return fingerprint({"inputs": self.inputs, "needs": [done.entry.digest for done in self.needs]})


@dataclass(frozen=True, slots=True)
class Left:
    """What an action leaves beside its files.

    Attributes:
        result: Plain values.
        rows: What the stage has to say in the tables of the run.
        of_others: How many of its seconds went into the work of other stages, by their names.
    """

    result: Any = None
    rows: Sequence[tuple[Table, Iterable[Row]]] = field(default=())
    of_others: Mapping[str, float] = field(default_factory=dict)


Action: TypeAlias = Callable[[Progress], Left]
"""Does the work of a stage. It may be killed at any moment and is then called again."""


class Engine:
    """Skips what the ledger says is done, records what gets done, and makes the tables of what stages say.

    Only the latest entry of a stage counts, and only while its files are those that the stage wrote. In a run that is
    kept at a URI, a stage whose files stay on scratch, and are gone with it, is made again once another needs them.
    """

    def __init__(self, folder: RunFolder, display: Display, mirror: Mirror | None = None) -> None:
        """Open the folder's ledger.

        Args:
            folder: The run; this process must hold its lock.
            display: Shows the stages.
            mirror: Brings what stages leave to the run's URI, if it has one.
        """
        self.folder = folder
        self._mirror = mirror
        self._waiting: dict[str, tuple[Stage, Action]] = {}
        self._ledger = Ledger(folder.ledger)
        self._outputs = Outputs(folder.path)
        self._display = display
        self._asked_for: set[str] = set()
        with folder.telling():
            self._unite(self._ledger.entries())
        if mirror is not None:
            mirror.commit(self._ledger.entries())

    def run(self, stage: Stage, action: Action) -> Done:
        """Run a stage, or return what it left before for the same inputs.

        Args:
            stage: What it is.
            action: Does the work.

        Raises:
            RunFolderError: If a file of the stage, or of one that it needs, has changed and is not made again here;
                names the file.
            MachineError: If a disk is full, read-only, failing or gone; says what is kept.
        """
        self._asked_for.add(stage.name)
        with self._saying_what_is_kept(stage.name):
            return self._run(stage, action)

    def makes(self, stage: Stage) -> bool:
        """Return whether `run` would make a stage, and neither take what is there nor refuse it.

        Args:
            stage: What it is.
        """
        entry = self._ledger.latest(stage.name)
        if entry is None or entry.fingerprint != stage.fingerprint:
            return True
        differing = self._outputs.differing((*entry.outputs, *entry.rows))
        refused = stage.costly and any(self._outputs.path(output).exists() for output in differing)
        return bool(differing) and not refused and not self._may_wait(entry)

    def _run(self, stage: Stage, action: Action) -> Done:
        entry = self._ledger.latest(stage.name)
        if entry is not None and entry.fingerprint == stage.fingerprint and self._is_whole(stage, entry):
            self._display.skip(stage.name)
            return Done(entry)
        if entry is not None and entry.fingerprint == stage.fingerprint and self._may_wait(entry):
            self._display.skip(stage.name)
            self._waiting[stage.name] = stage, action
            return Done(entry)
        return self._make(stage, action)

    def _make(self, stage: Stage, action: Action, stands_for: Entry | None = None) -> Done:
        """Make a stage.

        Args:
            stage: What it is.
            action: Does the work.
            stands_for: What it left before, on which others have built.
        """
        for done in stage.needs:
            self._require(done.entry)
        started = time.perf_counter()
        words = f"the same command goes on in {self._place} with the stage {stage.name!r}"
        with going_on(words), self._display.stage(stage.name, stage.title) as progress:
            left = action(progress)
        rows = self.folder.rows(stage.name)
        shutil.rmtree(rows, ignore_errors=True)
        if left.rows:
            with whole_folder(rows) as partial:
                for table, said in left.rows:
                    write_rows(partial, table, said)
        entry = Entry(
            stage.name,
            stage.fingerprint,
            left.result,
            time.perf_counter() - started,
            tuple(self._outputs.describe(stage.outputs, stage.self_checked)),
            tuple(self._outputs.describe([rows] if left.rows else [])),
            of_others=left.of_others,
        )
        if stands_for is not None and entry.digest != stands_for.digest:
            entry = replace(entry, stands_for=stands_for.digest)
            self._display.note(f"{stage.name}: made again here, it differs from what another machine has built on")
        with self.folder.telling():
            self._ledger.append(entry)
            if left.rows:
                self._unite(self._ledger.entries())
        if self._mirror is not None:
            self._mirror.commit(self._ledger.entries())
        return Done(entry)

    def finish(self) -> None:
        """Leave out of the tables what stages have said that this run has no more."""
        with self.folder.telling():
            self._unite([entry for entry in self._ledger.entries() if entry.stage in self._asked_for])

    def note(self, text: str) -> None:
        """Tell a person something.

        Args:
            text: In a line.
        """
        self._display.note(text)

    def stand(self, text: str) -> None:
        """Show how the stage that is made stands.

        Args:
            text: In a line, in place of the last one.
        """
        self._display.stand(text)

    @property
    def _place(self) -> str:
        """Where the run is, for people."""
        return str(self.folder.path) if self._mirror is None else self._mirror.uri

    @contextmanager
    def _saying_what_is_kept(self, stage: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            fault = machine_error(error)
            if fault is None:
                raise
            raise type(fault)(
                f"{stage}: {fault}; {len(self._ledger.entries())} finished stages and what this one had finished are "
                f"kept in {self.folder.path}, and the same command goes on from there"
                f"{f' and brings them to {self._place}' if self._mirror is not None else ''}"
            ) from error

    def _is_whole(self, stage: Stage, entry: Entry) -> bool:
        """Whether all that a stage left is there as it was; what has changed is removed, or refused."""
        differing = self._outputs.differing((*entry.outputs, *entry.rows))
        changed = [path for output in differing if (path := self._outputs.path(output)).exists()]
        if changed and stage.costly:
            raise RunFolderError(
                f"{changed[0]} is not what the stage {stage.name!r} wrote; restore it, or delete it and repeat the "
                "command, which then makes it again"
            )
        for path in changed:
            self._display.note(f"{stage.name}: {path} is not what was written, and is made again")
            remove(path)
        return not differing

    def _may_wait(self, entry: Entry) -> bool:
        """Whether all that a stage lacks are files that stay on scratch: they can wait until they are read."""
        if self._mirror is None:
            return False
        differing = self._outputs.differing((*entry.outputs, *entry.rows))
        return not any(self._mirror.keeps(output) for output in differing)

    def _require(self, entry: Entry) -> None:
        """Refuse to build on what has changed; what is gone with another machine's scratch is made again first."""
        if (waiting := self._waiting.pop(entry.stage, None)) is not None:
            entry = self._make(*waiting, stands_for=entry).entry
        entry = self._ledger.latest(entry.stage) or entry
        differing = self._outputs.differing(entry.outputs, thorough=True)
        if differing:
            path = self._outputs.path(differing[0])
            raise RunFolderError(
                f"{path} is not what the stage {entry.stage!r} wrote; delete it and repeat the command, which makes it "
                "again"
            )

    def _unite(self, entries: Sequence[Entry]) -> None:
        """Make the tables of what stages said, as far as it is still what they said."""
        parts = [self.folder.rows(entry.stage) for entry in entries if not self._outputs.differing(entry.rows)]
        for table in RUN_TABLES:
            unite_rows(self.folder.path, table, parts)
