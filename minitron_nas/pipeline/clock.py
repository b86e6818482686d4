"""What stages cost, and how long is left of a run."""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

_LEAST_FRACTION = 0.1
"""Of the first stage, before anything is said; it begins with loading a model."""

_LEAST_SHARE = 0.2
"""Of the time of finished stages that goes to their operations, whatever else is said to take time."""


@dataclass(frozen=True, slots=True)
class StageWork:
    """What one stage costs.

    Attributes:
        flops: Floating-point operations on all devices together.
        path_flops: As many as take as long, on one device at the pace of training, as the stage takes on all of them.
        seconds: What takes its time on whatever device.
    """

    flops: float
    path_flops: float
    seconds: float = 0.0

    def duration(self, flops_per_second: float) -> float:
        """Return the seconds that the stage takes.

        Args:
            flops_per_second: Of one device that trains.
        """
        return self.seconds + self.path_flops / flops_per_second


class Clock:
    """Estimates the time left from the stages that this process has finished.

    Their pace says how long every other stage takes. Kinds of stages differ in ways that no table foresees: so what is
    to come takes longer, or shorter, than the pace says by as much as stages of its kind have, where there was one.
    """

    def __init__(self) -> None:
        """Know of no work yet."""
        self._workload: Mapping[str, StageWork] = {}
        self._seconds: dict[str, float] = {}
        self._done: set[str] = set()
        self._running: str | None = None
        self._began, self._fraction = 0.0, 0.0

    def expect(self, workload: Mapping[str, StageWork]) -> None:
        """Learn what each stage costs.

        Args:
            workload: By the stages' names, the last word of which is their kind.
        """
        self._workload = dict(workload)

    def begin(self, stage: str) -> None:
        """Note that a stage begins."""
        self._running, self._began, self._fraction = stage, time.monotonic(), 0.0

    def advance(self, fraction: float) -> None:
        """Note how far the stage that runs has come."""
        self._fraction = fraction

    def finish(self, stage: str, by_us: bool = True) -> None:
        """Note that a stage has ended.

        Args:
            stage: Its name.
            by_us: Whether this process has done it, and not an earlier one.
        """
        if by_us:
            self._seconds[stage] = time.monotonic() - self._began
        self._done.add(stage)
        self._running = None

    def left(self) -> float | None:
        """Return the seconds that are left; None where that is not known, or nothing is."""
        to_come = {stage: work for stage, work in self._workload.items() if stage not in self._done}
        flops_per_second = self._pace()
        if flops_per_second is None or not to_come:
            return None
        slowness = self._slowness(flops_per_second)
        expected = {s: slowness[_kind(s)] * work.duration(flops_per_second) for s, work in to_come.items()}
        if self._running in expected:
            # What it has taken says as much about the rest of it as the share of it that is done.
            done, told = self._fraction, expected[self._running]
            expected[self._running] = (1 - done) * (time.monotonic() - self._began + (1 - done) * told)
        return sum(expected.values())

    def _pace(self) -> float | None:
        """Return the FLOPs per second of finished stages, or of the first one as far as it has come.

        It is the median by work: one stage that takes long for reasons of its own says little of the others.
        """
        known = {stage: (1.0, seconds) for stage, seconds in self._seconds.items() if stage in self._workload}
        running = self._running
        if not known and running is not None and running in self._workload and self._fraction >= _LEAST_FRACTION:
            known = {running: (self._fraction, time.monotonic() - self._began)}
        paces = []
        for stage, (fraction, seconds) in known.items():
            work = self._workload[stage]
            worked = max(seconds - work.seconds * fraction, _LEAST_SHARE * seconds)
            if worked:
                paces.append((work.path_flops * fraction / worked, work.path_flops * fraction))
        half = sum(flops for _, flops in paces) / 2
        for pace, flops in sorted(paces):
            half -= flops
            if half <= 0:
                return pace
        return None

    def _slowness(self, flops_per_second: float) -> Mapping[str, float]:
        """Return by how much finished stages of each kind took longer than their pace says."""
        taken, told = defaultdict[str, float](float), defaultdict[str, float](float)
        for stage, seconds in self._seconds.items():
            if stage in self._workload:
                taken[_kind(stage)] += seconds
                told[_kind(stage)] += self._workload[stage].duration(flops_per_second)
        return defaultdict(lambda: 1.0, {kind: taken[kind] / told[kind] for kind in taken if told[kind]})


def _kind(stage: str) -> str:
    return stage.rpartition(" ")[2]
