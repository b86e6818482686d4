"""`Devices`: what a plan runs on, and how many of them work at what."""

from dataclasses import dataclass
from typing import Self

import torch

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.training.arguments import most_processes
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.execution.device import compute_dtype, pick_device, total_bytes
from minitron_nas.execution.settings import RunnerSettings


@dataclass(frozen=True, slots=True)
class Devices:
    """Devices of one kind.

    Attributes:
        name: What a message calls one.
        number: How many there are.
        memory_bytes: Of each.
        value_bytes: Of a number that they compute with.
        are_here: Whether they are this machine's; what else it has counts only then.
    """

    name: str
    number: int
    memory_bytes: int
    value_bytes: int = 2
    are_here: bool = True

    @classmethod
    def here(cls) -> Self:
        """Return this machine's accelerators, or its CPUs, which work as one."""
        device = pick_device()
        number = max(torch.cuda.device_count(), 1)
        return cls(str(device), number, total_bytes(device), compute_dtype(device).itemsize)

    def of_a_trial(self, runner: RunnerSettings) -> int:
        """Return how many train one trial.

        Args:
            runner: Where trials run.
        """
        return max(min(self.number, int(runner.gpus_per_trial or 1)) if runner.kind == "ray" else self.number, 1)

    def trials_at_once(self, runner: RunnerSettings) -> int:
        """Return how many trials run beside each other.

        Args:
            runner: Where trials run.
        """
        return self.number // self.of_a_trial(runner) if runner.kind == "ray" else 1

    def of_a_distillation(self, runner: RunnerSettings, settings: DistillationSettings, schedule: Schedule) -> int:
        """Return how many train a student: as the runner says, else as many as divide the batch.

        Args:
            runner: May name a number of processes.
            settings: Sequences of a micro-batch.
            schedule: Sequences of a batch.
        """
        return min(runner.num_processes or most_processes(settings, schedule, self.number), self.number)

    def distillations_at_once(self, runner: RunnerSettings, settings: DistillationSettings, schedule: Schedule) -> int:
        """Return how many students and baselines of a size are trained beside each other.

        Args:
            runner: As above.
            settings: As above.
            schedule: As above.
        """
        each = self.of_a_distillation(runner, settings, schedule)
        return self.number // each if runner.kind == "ray" else 1
