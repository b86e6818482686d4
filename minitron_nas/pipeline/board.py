"""What a person is told of a stage beside how far it is: its trials, the best of them so far, and tokens a second."""

import time
from collections.abc import Callable, Sequence
from math import isfinite

from minitron_nas.distillation.job import TrainingJob
from minitron_nas.distillation.training.curve import TrainingResult
from minitron_nas.execution.runner import Tally
from minitron_nas.progress import Progress
from minitron_nas.reporting import numerals
from minitron_nas.search.contest import of_key


class Board:
    """Puts together the line that says how a stage stands.

    `see` is what `Jobs` tell, and `tokens` the progress of whoever counts tokens.
    """

    def __init__(self, progress: Progress, stand: Callable[[str], None], most: int | None = None) -> None:
        """Begin with nothing.

        Args:
            progress: Shows how far the stage is.
            stand: Shows the line.
            most: Candidates that a screening measures, in several calls; None where each call is a rung.
        """
        self._progress, self._stand, self._most = progress, stand, most
        self._counts, self._best, self._rate = "", "", ""
        self._ended: dict[str, float | None] = {}
        self._began: tuple[int, float] | None = None
        self._done = 0

    def see(self, tally: Tally) -> None:
        """Look at how jobs stand.

        Args:
            tally: Of a call; outcomes have `kl_nats`.
        """
        known = {key: outcome.number("kl_nats") for key, outcome in tally.ended.items()}
        self._ended |= known
        counted = known if self._most is None else self._ended
        failed = sum(kl is None for kl in counted.values())
        rung, total = of_key(tally.keys[0])[1], len(tally.keys) if self._most is None else self._most
        told = f"{len(counted) - failed:,} of {total:,} done, {tally.running:,} running, {failed:,} failed"
        self._counts = told if rung is None else f"rung {rung}: {told}"
        finite = {key: kl for key, kl in self._ended.items() if kl is not None and isfinite(kl)}
        if finite:
            best = min(finite, key=lambda key: finite[key])
            self._best = f"best KL {numerals.nats(finite[best])} nats, {of_key(best)[0]}"
        self._tell()

    def tokens(self, done: int, total: int) -> None:
        """Say how far the stage is.

        Args:
            done: Tokens.
            total: Of so many.
        """
        now = time.monotonic()
        if self._began is None or done < self._done:
            self._began = done, now
        self._done, tokens, seconds = done, done - self._began[0], now - self._began[1]
        self._rate = f"{numerals.speed(tokens / seconds)} tokens/s" if tokens and seconds else ""
        self._tell()
        self._progress(done, total)

    def training(self, job: TrainingJob) -> Progress:
        """Return what is told about the optimizer steps of a training.

        Args:
            job: The training, which leaves its best validation.
        """
        each = job.schedule.tokens_per_step

        def tell(done: int, total: int) -> None:
            self._best = _best(job)
            self.tokens(done * each, total * each)

        return tell

    def side_by_side(self, jobs: Sequence[TrainingJob]) -> Progress:
        """Return what is told how far trainings are together that go on at once; the line says it of each.

        Args:
            jobs: The trainings, which leave how far they are and their best validations.
        """
        tokens = sum(job.schedule.num_tokens for job in jobs)

        def tell(done: int, total: int) -> None:
            self._best = _stand_of(jobs)
            self.tokens(tokens * done // total, tokens)

        self._begin(_stand_of(jobs))
        return tell

    def starting(self, done: int, total: int) -> None:
        """Say how far the repair of a student is; how far the stage is, its training says alone.

        Args:
            done: Tokens.
            total: Of so many.
        """
        self._stand(f"{done / max(total, 1):.0%} of the repair of what it starts with")
        self._progress(0, total)

    def trained(self, job: TrainingJob, work: Callable[[Progress], TrainingResult]) -> TrainingResult:
        """Do a training and tell of it, of the last validation, too, which comes after the last step.

        Args:
            job: The training.
            work: Does it.
        """
        tell = self.training(job)
        self._begin(_best(job))
        result = work(tell)
        tell(job.schedule.num_steps, job.schedule.num_steps)
        return result

    def _begin(self, best: str) -> None:
        """Say how another work stands before it goes on."""
        self._best, self._rate, self._began = best, "", None
        self._tell()

    def _tell(self) -> None:
        self._stand("; ".join(filter(None, (self._counts, self._best, self._rate))))


def _stand_of(jobs: Sequence[TrainingJob]) -> str:
    return "; ".join(", ".join(filter(None, (_far(job), _best(job)))) for job in jobs)


def _far(job: TrainingJob) -> str:
    done, total = job.progress() or (0, 1)
    return f"{job.checkpoints.name} {done / total:.0%}"


def _best(job: TrainingJob) -> str:
    if (best := job.best()) is None:
        return ""
    (step, value), judge = best, {"kl_nats": "KL", "loss_nats": "loss"}[job.judge]
    tokens = numerals.count(step * job.schedule.tokens_per_step)
    return f"best {judge} {numerals.nats(value)} nats after {tokens} tokens"
