"""The runner that turns jobs into Ray Tune trials; the only module that imports ray.tune."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minitron_nas.execution import ray_session  # isort: skip  # before ray, for which it sets what ray reads

# Set before Tune is imported: plain old console output, and results at their own pace.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # ours hears all signals

from ray import tune
from ray.tune.experiment import Trial

from minitron_nas.errors import PlanError
from minitron_nas.execution.deadline import Deadline
from minitron_nas.execution.parent import working_for
from minitron_nas.execution.preemption import SIGNALS, on_stop, stopped
from minitron_nas.execution.runner import Job, JobFunction, Outcome, attempt, lost, slowest_before
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.storage.locks import Starter, end, writing

_OUTCOME = "outcome"


class RayTuneRunner:
    """Runs each job as a Ray Tune trial, on an embedded Ray or on a cluster."""

    def __init__(self, settings: RunnerSettings, folder: Path) -> None:
        """Remember where to run.

        Args:
            settings: Address and resources of a trial.
            folder: Where Ray Tune keeps its experiment state; removed when a call has ended.
        """
        self._settings, self._folder = settings, folder.absolute()

    def check(self) -> None:
        """Connect to a cluster, and refuse what no node can ever hold; a Ray of one's own is not started for that.

        Raises:
            PlanError: If no cluster answers, or none of its nodes, or this machine, has what a trial asks for, or Ray
                cannot be started.
            MachineError: If Ray's folder cannot be written to.
        """
        if ray_session.check(self._settings.cluster) is None:
            self._resources()
            return
        with ray_session.connected(self._settings.cluster, self._folder):
            self._resources()

    def room(self) -> int:
        """Return how many trials all nodes hold together.

        Raises:
            PlanError: If no cluster answers, or none of its nodes has what a trial asks for.
        """
        with ray_session.connected(self._settings.cluster, self._folder):
            each = self._resources()
            return ray_session.room_for(each["cpu"], each["gpu"])

    def held(self) -> AbstractContextManager[None]:
        """Stay connected to Ray, and with it the Ray that is started here, until the block ends."""
        return ray_session.connected(self._settings.cluster, self._folder)

    def execute(self, function: JobFunction, jobs: Sequence[Job], on_outcome: Callable[[Outcome], None]) -> None:
        """Run every job as a trial.

        Args:
            function: What the jobs run.
            jobs: With distinct keys.
            on_outcome: Called in this process; what it raises ends the call.

        Raises:
            PlanError: If no node of the cluster can ever hold a trial.
            PreemptedError: After a signal.
        """
        with ray_session.connected(self._settings.cluster, self._folder):
            self._fit(function, {job.key: job for job in jobs}, on_outcome)

    def _fit(self, function: JobFunction, by_key: Mapping[str, Job], on_outcome: Callable[[Outcome], None]) -> None:
        deadline = Deadline.of(self._settings, slowest_before(by_key.values()))
        delivery, starter = _Delivery(on_outcome, deadline), Starter.current()

        def trial(config: dict[str, Any]) -> None:
            with working_for(starter, task=config["job"]):
                outcome = attempt(function, by_key[config["job"]])
            tune.report({_OUTCOME: asdict(outcome)})

        tuner = tune.Tuner(
            tune.with_resources(trial, self._resources()),
            param_space={"job": tune.grid_search(list(by_key))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(self._folder),
                failure_config=tune.FailureConfig(max_failures=self._settings.max_worker_losses),
                callbacks=[delivery],
                stop=delivery,
                verbose=0,
            ),
        )
        with on_stop(delivery.stop, SIGNALS):
            tuner.fit()
        if delivery.refusal is not None:
            raise delivery.refusal
        for key, of_tune in delivery.lost.items():
            if key not in delivery.keys:
                said = str(of_tune.get_error())  # which Tune copies to there some time after the loss
                on_outcome(lost(key, said, delivery.began.get(key)))

    def _resources(self) -> dict[str, float]:
        gpus = self._settings.gpus_per_trial
        gpus = gpus if gpus is not None else float(ray_session.num_gpus() > 0)
        cpus = self._settings.cpus_per_trial or (ray_session.cpus_beside(gpus) if gpus else ray_session.most_cpus())
        if ray_session.room_for(cpus, gpus) == 0:
            raise PlanError(
                f"a trial asks for {cpus:g} CPUs and {gpus:g} GPUs, which no node has (at most "
                f"{ray_session.most_cpus():g} CPUs and {ray_session.most_gpus():g} GPUs); lower runner.cpus_per_trial "
                "or runner.gpus_per_trial"
            )
        return {"cpu": cpus, "gpu": gpus}


class _Delivery(tune.Callback, tune.Stopper):
    """Hands over each outcome in the driver, and ends the trials when the receiver refuses to go on.

    Attributes:
        keys: Jobs whose outcome was handed over.
        began: When each job was begun last, in seconds since 1970.
        lost: Tune's trials of those whose worker was lost for good.
        refusal: Why the receiver refused, or which signal came.

    Tune wraps what a callback raises into an error of its own, so a refusal is kept until Tune has
    ended. Tune also pickles its callbacks and stoppers, but needs none of this state.
    """

    def __init__(self, on_outcome: Callable[[Outcome], None], deadline: Deadline) -> None:
        self._on_outcome, self._deadline = on_outcome, deadline
        self._begun: dict[str, float] = {}
        self.keys: set[str] = set()
        self.began: dict[str, float] = {}
        self.lost: dict[str, Trial] = {}
        self.refusal: BaseException | None = None

    def stop(self, signum: int) -> None:
        """End the trials after a signal; what is raised wherever the driver is may end Ray by a fault."""
        self.refusal = stopped(signum, "the same command goes on with the trials that are left")

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Hand over the outcome that a trial has reported."""
        if _OUTCOME in result:
            outcome = Outcome(**result[_OUTCOME])
            if outcome.status == "completed":
                self._deadline.learn(outcome.seconds)
            self._hand_over(outcome)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Look at the clock; after a loss a trial starts again."""
        self._begun[trial.config["job"]] = time.monotonic()
        self.began[trial.config["job"]] = time.time()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Give up trials that are overdue, whether they work, wait or were stopped, and free what they hold."""
        now = time.monotonic()
        for trial in trials:
            key = trial.config["job"]
            seconds = now - self._begun.get(key, now)
            if trial.status != Trial.RUNNING or key in self.keys or not self._deadline.is_over(seconds):
                continue
            self._hand_over(Outcome(key, "timeout", None, str(self._deadline), seconds, self.began.get(key)))
            trial.run_metadata.num_failures = sys.maxsize  # it is not tried again
            for process in writing(key):
                end(process)
            actor = trial.temporary_state.ray_actor
            if actor is not None:
                ray_session.end_actor(actor)

    def _hand_over(self, outcome: Outcome) -> None:
        """Hand over an outcome; the first of a job counts, though its worker be lost then and another repeat it."""
        if outcome.key in self.keys or self.refusal is not None:
            return
        self.keys.add(outcome.key)
        try:
            self._on_outcome(outcome)
        except Exception as refusal:  # noqa: BLE001  # raised once Tune has ended
            self.refusal = refusal

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Remember a trial whose worker was lost, unless it had reported before."""
        if trial.config["job"] not in self.keys:
            self.lost[trial.config["job"]] = trial

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Stop them all after a refusal."""
        return self.refusal is not None
