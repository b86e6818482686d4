"""`Mirror`: a run whose folder is a URI, and this machine's copy of it on scratch, where all work is done.

What outlives the machine goes to the URI: after each stage its files, then the ledger that names them, so that what the
ledger there says is there; while a stage works, its trainings' whole checkpoints and what its trials have measured.
What can be made again stays on scratch: tokens, what teachers say, prepared teachers, checkpoints of trials.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from minitron_nas.distillation.training.checkpoints import MARK, last_whole
from minitron_nas.errors import MinitronNasError, RunFolderError
from minitron_nas.pipeline.display import Display
from minitron_nas.settings import about_bytes
from minitron_nas.storage.atomic import remove
from minitron_nas.storage.cache import scratch_folder
from minitron_nas.storage.claim import OWNERS, Claim
from minitron_nas.storage.foreign import plain_name
from minitron_nas.storage.ledger import Entry, Ledger
from minitron_nas.storage.machine import machine_error
from minitron_nas.storage.outputs import Output, Outputs
from minitron_nas.storage.remote import Object, Store, as_uri
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.storage.schemas import RUN_TABLES

_MADE_AGAIN = ("tokens/", "signals/", "prepared/")
"""Outputs of stages that are large, and that the stage leaves again in the same way."""

_TRAININGS, _TRIALS = "checkpoints/", "trials/"
_STARTS = "-starts/"
"""Untrained students, which are made again."""

_POLL_SECONDS = 5.0
_SHOWN_BYTES = 64 << 20
"""So much is moved without a word."""


class Mirror:
    """A run at a URI, and its copy on scratch."""

    def __init__(self, uri: str, display: Display) -> None:
        """Say where both are; nothing is asked of the network yet.

        Args:
            uri: Of the run.
            display: Told what is moved.

        Raises:
            PlanError: If the URI's driver is not installed, or there is none.
        """
        name = uri.rpartition("/")[2]
        self.uri, self.sent_bytes = uri, 0
        self.folder = RunFolder(scratch_folder() / sha256(uri.encode()).hexdigest()[:16] / name)
        self._display, self._store = display, Store(uri)
        self._claim = Claim(self._store)
        self._outputs = Outputs(self.folder.path)
        self._kept: dict[str, tuple[str, int, str | None]] = {}
        self._loose: dict[str, tuple[int, int]] = {}
        self._under_way: set[str] = set()

    @classmethod
    def of(cls, out: str | Path, display: Display) -> "Mirror | None":
        """Return the mirror of a run folder that is given as a URI, None where it is a path.

        Args:
            out: The run folder.
            display: Told what is moved.
        """
        uri = as_uri(out)
        return None if uri is None else cls(uri, display)

    @staticmethod
    def keeps(output: Output) -> bool:
        """Whether a file of a stage goes to the URI.

        Args:
            output: The file.
        """
        return not output.path.startswith(_MADE_AGAIN)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the URI for this command, fetch what is there, and bring there what is under way while the block runs.

        This process must hold the lock of the folder on scratch.

        Raises:
            RunFolderError: If another command works there, or it holds something but no run, or an object that is
                not what its stage wrote.
            MachineError: If it cannot be reached.
        """
        over = threading.Event()
        self._refuse_foreign(self._store.objects())
        with self._claim.held(self._display.note):
            self._fetch()
            thread = threading.Thread(target=self._watch, args=(over,), daemon=True, name="mirror")
            thread.start()
            try:
                yield
            except BaseException as error:
                over.set()
                thread.join()
                if machine_error(error) is None:  # else what failed may be the store
                    with suppress(MinitronNasError, OSError):
                        self._put_under_way()
                raise
            over.set()
            thread.join()
            self._put_loose()
            self._put_under_way()
        self._display.note(f"{self.uri} holds the run ({about_bytes(self.sent_bytes)} uploaded by this command)")

    def commit(self, entries: Sequence[Entry]) -> None:
        """Bring what stages have left to the URI, and last the ledger, which says that it is there.

        Args:
            entries: The latest of each stage.

        Raises:
            RunFolderError: If another command has taken this one for dead.
            MachineError: If the URI cannot be reached.
        """
        kept = {o.path: o for entry in entries for o in (*entry.outputs, *entry.rows) if self.keeps(o)}
        new = [o for o in kept.values() if self._kept.get(o.path) != o.identity and self._outputs.path(o).is_file()]
        self._claim.require()
        self._put_loose()
        with self._moving("uploaded", sum(output.num_bytes for output in new)) as moved:
            for output in new:
                self._put(output.path)
                self._kept[output.path] = output.identity
                moved(output.num_bytes)
        for name in self._kept.keys() - kept.keys():
            self._store.remove(name)
            del self._kept[name]
        self._claim.require()
        if self.folder.ledger.is_file():
            self._put(self.folder.ledger.name)

    def _put(self, name: str) -> None:
        self.sent_bytes += self._store.put(self.folder.path / name, name)

    def _put_loose(self) -> None:
        """Bring what no stage has left: the plan, tables, cards, the report."""
        folder = self.folder
        tables = (folder.path / table.file_name for table in RUN_TABLES)
        for file in (folder.plan, *tables, *folder.path.glob("students/*/README.md"), folder.report):
            name = str(file.relative_to(folder.path))
            if file.is_file() and self._loose.get(name) != (look := _look(file)):
                self._put(name)
                self._loose[name] = look

    def _refuse_foreign(self, there: Mapping[str, Object]) -> None:
        if self.folder.plan.name not in there and (others := [name for name in there if not name.startswith(OWNERS)]):
            raise RunFolderError(
                f"{self.uri} holds other objects ({', '.join(others[:3])}) but no plan.yaml of a run; choose an empty "
                "or new --out"
            )

    def _fetch(self) -> None:
        """Make scratch what the URI holds, unless it goes on from there already."""
        folder, there = self.folder, self._store.objects()
        told = self._store.read(folder.ledger.name) or b""
        here = folder.ledger.read_bytes() if folder.ledger.is_file() else b""
        if folder.plan.name not in there or not (told.startswith(here) or here.startswith(told)):
            self._empty()  # the run was removed there, or another machine has gone on with it
        if folder.plan.name not in there or not here.startswith(told):
            here = told
        folder.work.mkdir(parents=True, exist_ok=True)
        kept = {o.path: o for entry in self._entries(told) for o in (*entry.outputs, *entry.rows) if self.keeps(o)}
        self._kept = {path: o.identity for path, o in kept.items() if path in there}
        wanted = {o.path: (o, entry.stage) for entry in self._entries(here) for o in (*entry.outputs, *entry.rows)}
        if odd := [path for path in (*kept, *wanted) if not plain_name(path)]:
            raise RunFolderError(
                f"{self.uri}/{folder.ledger.name} names {odd[0]!r}, which is no file of a run; restore it"
            )
        missing = self._outputs.differing(
            output for output, _ in wanted.values() if self._kept.get(output.path) == output.identity
        )
        loose = [name for name in there if name == folder.plan.name or name.endswith("/README.md")]
        self._under_way = {name for name in there if name.startswith((_TRAININGS, _TRIALS))}
        begun = [name for name in self._under_way if _is_whole(name, there) and not (folder.path / name).exists()]
        names = [*loose, *begun]
        with self._moving("fetched", sum(o.num_bytes for o in missing) + _size(names, there)) as moved:
            for name in names:
                self._store.get(name, folder.path / name)
                moved(there[name].num_bytes)
            for output in missing:
                self._get(output, wanted[output.path][1])
                moved(output.num_bytes)
        if here:
            folder.ledger.write_bytes(here)

    def _get(self, output: Output, stage: str) -> None:
        path = self._outputs.path(output)
        self._store.get(output.path, path)
        (found,) = self._outputs.describe([path])
        if found.identity != output.identity:
            remove(path)
            raise RunFolderError(
                f"{self.uri}/{output.path} is not what the stage {stage!r} wrote; restore it, or delete it and repeat "
                "the command, which then makes it again"
            )
        os.utime(path, ns=(output.changed_ns, output.changed_ns))

    def _entries(self, ledger: bytes) -> list[Entry]:
        with self.folder.temporary() as work:
            (work / "ledger").write_bytes(ledger)
            return Ledger(work / "ledger").entries()

    def _empty(self) -> None:
        """Empty scratch; plan and ledger go last, so that one that is half empty is known."""
        last = (self.folder.ledger, self.folder.plan)
        others = [path for path in self.folder.path.iterdir() if path not in last and not path.name.startswith(".")]
        for path in (*others, *last):
            remove(path)

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(_POLL_SECONDS):
            with suppress(MinitronNasError, OSError):  # what cannot be reached now, the end of the stage tells
                self._put_under_way(over)

    def _put_under_way(self, over: threading.Event | None = None) -> None:
        """Bring what an unfinished stage goes on with, and remove what no stage does any more.

        Args:
            over: Ends this early.
        """
        run = self.folder.path
        for file in run.glob(f"{_TRIALS}**/*.json"):
            name = str(file.relative_to(run))
            if name not in self._under_way and "/checkpoints/" not in name and not (over and over.is_set()):
                self._put(name)
                self._under_way.add(name)
        for folder in sorted({mark.parents[1] for mark in run.glob(f"{_TRAININGS}**/checkpoint-*/{MARK}")}):
            if _STARTS not in f"{folder.relative_to(run)}/" and not (over and over.is_set()):
                self._put_training(folder)
        for name in sorted(self._under_way):
            place = run / name
            if not (place if name.startswith(_TRIALS) else place.parents[1]).exists():
                self._store.remove(name)
                self._under_way.discard(name)

    def _put_training(self, folder: Path) -> None:
        """Bring the last whole checkpoint of a training and its best weights so far, then remove what was before it.

        The training goes on meanwhile: what it removes stays in links until it is uploaded.
        """
        whole, run = last_whole(folder), self.folder.path
        if whole is None or f"{whole.relative_to(run)}/{MARK}" in self._under_way:
            return
        with self.folder.temporary() as work:
            for file in (*folder.glob("best-*/*.*"), *whole.glob("*")):
                link = work / file.relative_to(folder)
                link.parent.mkdir(exist_ok=True)
                _link(link, file)
            if not (whole / MARK).exists() or last_whole(work) is None or not _has_weights(work / whole.name):
                return  # a newer one has just replaced it
            files = [file for file in work.rglob("*") if file.is_file() and _has_weights(file.parent)]
            for file in sorted(files, key=lambda file: file.name == MARK):
                name = str((folder / file.relative_to(work)).relative_to(run))
                if name not in self._under_way or "/best-" not in name:  # the best stay the best for long
                    self.sent_bytes += self._store.put(file, name)
                self._under_way.add(name)
            brought = {str((folder / file.relative_to(work)).relative_to(run)) for file in files}
        for name in sorted(self._under_way - brought):
            if (run / name).parents[1] == folder:
                self._store.remove(name)
                self._under_way.discard(name)

    @contextmanager
    def _moving(self, done: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
        """Show a transfer that takes time."""
        if num_bytes < _SHOWN_BYTES:
            yield lambda _: None
            return
        with self._display.stage("storage", f"{about_bytes(num_bytes)} are {done}") as progress:
            total = 0

            def moved(more: int) -> None:
                nonlocal total
                total += more
                progress(total, num_bytes)

            yield moved


def _is_whole(name: str, there: Mapping[str, Object]) -> bool:
    """Whether an object is one of a whole checkpoint, of whole weights, or stands for itself."""
    place = name.rpartition("/")[0]
    if not name.startswith(_TRAININGS):
        return True
    return f"{place}/{MARK}" in there or ("/best-" in name and f"{place}/model.checksums.json" in there)


def _link(link: Path, file: Path) -> None:
    """Let a file go on to be there under another name, or a copy of it where its disk knows no links."""
    try:
        link.hardlink_to(file)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(file, link)


def _has_weights(folder: Path) -> bool:
    """Whether all tensors are there that a folder has checksums of."""
    sums = list(folder.glob("*.checksums.json"))
    return bool(sums) and all((folder / f"{file.name.partition('.')[0]}.safetensors").exists() for file in sums)


def _size(names: Sequence[str], there: Mapping[str, Object]) -> int:
    return sum(there[name].num_bytes for name in names)


def _look(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
