"""The runner that stays in this process: for debugging, notebooks, and what gains nothing by another."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from minitron_nas.execution.deadline import Deadline
from minitron_nas.execution.runner import Job, JobFunction, Outcome, attempt, slowest_before
from minitron_nas.execution.settings import RunnerSettings


class LocalRunner:
    """Runs jobs one after the other."""

    def __init__(self, settings: RunnerSettings | None = None) -> None:
        """Remember how long a job may take.

        Args:
            settings: Multiple and floor of deadlines.
        """
        self._settings = settings or RunnerSettings(kind="local")

    def room(self) -> int:
        """Return how many jobs run at once: one."""
        return 1

    def held(self) -> AbstractContextManager[None]:
        """Do nothing: nothing is started."""
        return nullcontext()

    def execute(self, function: JobFunction, jobs: Sequence[Job], on_outcome: Callable[[Outcome], None]) -> None:
        """Run every job in this process.

        Args:
            function: What the jobs run.
            jobs: With distinct keys.
            on_outcome: Called after each job; what it raises ends the call.
        """
        deadline = Deadline.of(self._settings, slowest_before(jobs))
        for job in jobs:
            outcome = attempt(function, job, deadline)
            if outcome.status == "completed":
                deadline.learn(outcome.seconds)
            on_outcome(outcome)
