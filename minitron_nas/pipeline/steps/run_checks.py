"""Two runs held against each other, member by member, by what they have measured."""

from collections.abc import Iterator
from pathlib import Path

from minitron_nas.errors import PlanError, RunFolderError
from minitron_nas.evaluation.paired import TaskResults
from minitron_nas.pipeline.steps.check import Check, ratio, rise
from minitron_nas.pipeline.steps.limits import CompareLimits
from minitron_nas.pipeline.steps.task_checks import checks_of_tasks, results_of_run
from minitron_nas.reporting.run_record import plain_rows, read_run


def checks_of_runs(base: Path, other: Path, limits: CompareLimits) -> Iterator[Check]:
    """Yield a check for every measure of every member of the first run.

    Args:
        base: The folder of the first.
        other: The folder of the second.
        limits: What is allowed.

    Raises:
        RunFolderError: If the first has evaluated no student.
        PlanError: If there is a limit on tasks and the first has answered none.
    """
    first, second = ({row["model"]: row for row in plain_rows(read_run(each).evaluations)} for each in (base, other))
    if not first.keys() - {"teacher"}:
        raise RunFolderError(f"{base} has evaluated no student yet, so none is held against it; let its build go on")
    for name in first:
        if name not in second:
            yield Check("evaluated", None, 0.0, model=name, words=f"{other} has no such member, or not yet")
            continue
        for column, limit in (("kl_nats", limits.kl_nats), ("loss_nats", limits.loss_increase_nats)):
            nats = (first[name][column], second[name][column])
            yield Check(f"{column} rises by", rise(*nats), limit, "at most", *nats, model=name)
        shares = (first[name]["ended_share"], second[name]["ended_share"])
        yield Check("ended_share falls by", rise(*reversed(shares)), limits.ended_drop, "at most", *shares, model=name)
        least = (
            ("agreement_tokens", limits.agreement_share),
            ("prefill_speedup", limits.prefill_speedup),
            ("decode_speedup", limits.decode_speedup),
        )
        for column, limit in least:
            values = (first[name][column], second[name][column])
            kept, words = (None, "the first has none to keep to") if values[0] == 0 else (limit, None)
            yield Check(f"{column} over", ratio(*values), kept, "at least", *values, model=name, words=words)
        most = (("num_parameters", limits.parameters_ratio), ("peak_memory_bytes", limits.memory_ratio))
        for column, limit in most:
            sizes = (first[name][column], second[name][column])
            yield Check(f"{column} over", ratio(*sizes), limit, "at most", *sizes, model=name)
    yield from _of_tasks(base, other, limits)


def _of_tasks(base: Path, other: Path, limits: CompareLimits) -> Iterator[Check]:
    first, second = results_of_run(base), results_of_run(other)
    if limits.task_drop is not None and not first:
        raise PlanError(f"task_drop is a limit on lm-eval tasks, and {base} has answered none; leave it out")
    nothing = TaskResults((), ())
    for name, results in first.items():
        yield from checks_of_tasks(results, second.get(name, nothing), limits.task_drop, name)
