"""The runner that stays in this process: for debugging, notebooks and single machines."""

from collections.abc import Callable, Sequence

from minitron_nas.execution.runner import Job, JobFunction, Outcome, attempt


class LocalRunner:
    """Runs jobs one after the other."""

    def execute(self, function: JobFunction, jobs: Sequence[Job], on_outcome: Callable[[Outcome], None]) -> None:
        """Run every job in this process.

        Args:
            function: What the jobs run.
            jobs: With distinct keys.
            on_outcome: Called after each job; what it raises ends the call.
        """
        for job in jobs:
            on_outcome(attempt(function, job))
