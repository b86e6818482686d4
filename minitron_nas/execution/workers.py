"""Where the heavy part of a stage runs: in this process, or on the nodes of a cluster, side by side."""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, TypeAlias

import torch

from minitron_nas import errors
from minitron_nas.errors import MachineError, MinitronNasError, WorkerError
from minitron_nas.execution.choice import count_gpus, make_runner
from minitron_nas.execution.runner import Job, Outcome, last_line
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.machine import machine_error
from minitron_nas.storage.sealed import read_sealed, write_sealed

Work: TypeAlias = Callable[..., Any]
"""A module-level function that takes keyword arguments that can be pickled, `progress` among them if it says how far it
is, and returns plain values. It may be killed at any moment and is then called again, perhaps on another machine."""

_TELLING_SECONDS = 1.0
_WHOLE = 1000
"""What a job's progress is told in parts of, so that jobs of different units add up."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Who does the heavy part of a stage.

    On a cluster, and where this machine has several GPUs for Ray to give away, each call is a job of its own with a
    trial's share of the machines, and this process computes nothing; else it is done here.

    Attributes:
        settings: Name the cluster, and what one job gets of it.
        folder: Where Ray's state lies and jobs say how far they are; on storage that all nodes share.
    """

    settings: RunnerSettings
    folder: Path

    @property
    def here(self) -> bool:
        """Whether work is done in this process."""
        return not self.settings.on_cluster and (self.settings.kind == "local" or torch.cuda.device_count() < 2)

    @property
    def trials_here(self) -> bool:
        """Whether trials gain nothing by workers: they would run on this machine, one after the other."""
        return self.here and (self.settings.kind == "local" or self._room_of_machine() < 2)

    def _room_of_machine(self) -> float:
        """Return how many trials a Ray would run at once that is started here."""
        cpus, gpus = self.settings.cpus_per_trial, self.settings.gpus_per_trial
        num_gpus = torch.cuda.device_count()
        gpus = gpus if gpus is not None else float(num_gpus > 0)
        by_gpus = num_gpus / gpus if gpus else inf
        by_cpus = (os.cpu_count() or 1) / cpus if cpus else inf if gpus else 1
        return min(by_gpus, by_cpus)

    def room(self) -> int:
        """Return how many jobs run at once.

        Raises:
            PlanError: If no cluster answers, or none of its nodes has what one job asks for.
        """
        return 1 if self.here else make_runner(self.settings, self.folder / "ray").room()

    def num_gpus(self) -> int:
        """Return how many GPUs there are where jobs run, if that is not here.

        Raises:
            PlanError: If no cluster answers.
        """
        return count_gpus(self.settings, self.folder / "ray")

    def held(self) -> AbstractContextManager[None]:
        """Keep what calls start until the block ends, for all calls in it.

        Raises:
            PlanError: If no cluster answers.
        """
        return nullcontext() if self.here else make_runner(self.settings, self.folder / "ray").held()

    def call(self, function: Work, progress: Progress | None = None, **arguments: Any) -> Any:
        """Call a function where work is done, and return what it returns.

        Args:
            function: The work.
            progress: Told how far it is; without it, the function takes none.
            **arguments: Its own, but for `progress`.

        Raises:
            MinitronNasError: What the function raises on purpose.
            WorkerError: If its worker was lost again and again, or it failed by a defect; on a cluster only, here
                what it raises is passed on as it is.
        """
        return self.share(function, [arguments], progress)[0]

    def share(self, function: Work, parts: Sequence[Mapping[str, Any]], progress: Progress | None = None) -> list[Any]:
        """Call a function for each part of a work, as many at once as there is room for.

        Args:
            function: The work.
            parts: The arguments of each call, but for `progress`.
            progress: Told how far all of them are; without it, the function takes none.

        Returns:
            What the calls return, in order.

        Raises:
            MinitronNasError: What a call raises on purpose.
            WorkerError: As `call` does.
        """
        if not self.here:
            return self._on_cluster(function, parts, progress)
        if progress is None:
            return [function(**part) for part in parts]
        tellers = [progress] if len(parts) == 1 else _tellers(progress, len(parts))
        return [function(**part, progress=teller) for part, teller in zip(parts, tellers, strict=True)]

    def _on_cluster(self, function: Work, parts: Sequence[Mapping[str, Any]], progress: Progress | None) -> list[Any]:
        told = [self.folder / "told" / f"{number}.json" for number in range(len(parts))]
        for file in told:
            file.unlink(missing_ok=True)
        jobs = [
            Job(
                str(number), {"function": function, "arguments": dict(part), "told": None if progress is None else file}
            )
            for number, (part, file) in enumerate(zip(parts, told, strict=True))
        ]
        returned: dict[str, Any] = {}

        def keep(outcome: Outcome) -> None:
            returned[outcome.key] = _returned(outcome)

        over = threading.Event()
        watch = threading.Thread(target=_watch, args=(told, progress or silent, over), daemon=True, name="workers")
        watch.start()
        try:
            make_runner(self.settings, self.folder / "ray").execute(_do, jobs, keep)
        finally:
            over.set()
            watch.join()
        return [returned[job.key] for job in jobs]


def _do(function: Work, arguments: Mapping[str, Any], told: Path | None) -> dict[str, Any]:
    """Do one job in a worker, saying how far it is; what is raised on purpose comes back as it is."""
    teller = {} if told is None else {"progress": _Teller(told)}
    try:
        return {"value": function(**arguments, **teller)}
    except MinitronNasError as error:
        if machine_error(error) is not None:
            raise
        return errors.to_plain(error)


def _returned(outcome: Outcome) -> Any:
    """Return what a job returned, or raise why it did not."""
    if outcome.status == "machine":
        raise MachineError(outcome.error)
    if outcome.value is None:
        memory = "; it did not fit into memory: give a job more with runner.gpus_per_trial or runner.cpus_per_trial"
        more = memory if outcome.status == "infeasible" else ""
        raise WorkerError(f"work on the cluster ended by {last_line(outcome.error)}{more}\n{outcome.error}")
    if "error" in outcome.value:
        raise errors.from_plain(outcome.value)
    return outcome.value["value"]


class _Teller:
    """Leaves in a file how far a job is, once a second."""

    def __init__(self, file: Path) -> None:
        self._file, self._next = file, 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next or done == total:
            self._next = now + _TELLING_SECONDS
            write_sealed(self._file, {"done": done, "total": total})


def _watch(told: Sequence[Path], progress: Progress, over: threading.Event) -> None:
    """Pass on how far jobs are together, until they have ended."""
    furthest = 0
    while not over.wait(_TELLING_SECONDS):
        parts = [_part(file) for file in told]
        furthest = max(furthest, int(_WHOLE * sum(parts)))
        if furthest:
            progress(furthest, _WHOLE * len(parts))


def _part(file: Path) -> float:
    content = read_sealed(file)
    return content["done"] / content["total"] if content is not None and content["total"] else 0.0


def _tellers(progress: Progress, num_parts: int) -> list[Progress]:
    """Return what is told of each of several parts that are done one after the other."""

    def tell(number: int, done: int, total: int) -> None:
        progress(int(_WHOLE * (number + (done / total if total else 0.0))), _WHOLE * num_parts)

    return [partial(tell, number) for number in range(num_parts)]
