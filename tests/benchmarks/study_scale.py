"""What Ray adds to each job where many workers run many: sleeping trials on a head with more CPUs than it has.

`python tests/benchmarks/study_scale.py --workers 1 4 16 64` starts a head of its own for each number of logical workers
and lets real trials sleep there: a screening of 500 candidates, and a tournament of 32 finalists in three rungs. The
longer they sleep (`--screen 30 --rungs 30 60 120`), the more workers two cores can carry. Prints wall time beside the
least that so many workers need, their ratio, and the driver's peak memory. The workers share this machine's cores, so
that what they compute themselves (their start, what they import) is a machine's and not a cluster's: they start before
the clock does, which is told by itself.
"""

import argparse
import math
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from minitron_nas.execution.ray_tune import RayTuneRunner  # isort: skip  # sets what Ray reads when it is imported

import ray
from ray.cluster_utils import Cluster

from minitron_nas.execution.runner import Job, Jobs
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.pipeline.display import default_display
from minitron_nas.search.rungs import quotas

CANDIDATES, FINALISTS, REDUCTION = 500, 32, 2


def sleep(seconds: float) -> Mapping[str, Any]:
    """Do what a trial does: take time, and return a number."""
    time.sleep(seconds)
    return {"kl_nats": seconds}


def meet(folder: str, num_workers: int, number: int) -> Mapping[str, Any]:
    """Wait until so many workers have come to a folder."""
    (Path(folder) / f"{number}").touch()
    while len(os.listdir(folder)) < num_workers:
        time.sleep(0.05)
    return {"kl_nats": 0.0}


@contextmanager
def head(num_workers: int) -> Iterator[str]:
    """Run a head that believes in so many CPUs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": num_workers, "include_dashboard": False})
    try:
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def start_workers(jobs: Jobs, num_workers: int, folder: Path) -> float:
    """Return the seconds until all workers have started."""
    folder.mkdir()
    started = time.perf_counter()
    asked = [
        Job(f"worker-{number}", {"folder": str(folder), "num_workers": num_workers, "number": number})
        for number in range(num_workers)
    ]
    jobs.run(meet, asked)
    return time.perf_counter() - started


def screening(jobs: Jobs, num_workers: int, seconds: float) -> tuple[float, float, int]:
    """Return seconds taken, the least possible, and how many trials there were."""
    return *timed(jobs, "screened", CANDIDATES, seconds, num_workers), CANDIDATES


def tournament(jobs: Jobs, num_workers: int, each: Sequence[float]) -> tuple[float, float, int]:
    """Return seconds taken, the least possible, and how many trials there were."""
    fields = quotas(FINALISTS, each, REDUCTION)[: len(each)]
    rungs = [
        timed(jobs, f"rung {rung}", num, seconds, num_workers)
        for rung, (num, seconds) in enumerate(zip(fields, each, strict=True))
    ]
    return sum(taken for taken, _ in rungs), sum(least for _, least in rungs), sum(fields)


def timed(jobs: Jobs, kind: str, num: int, seconds: float, num_workers: int) -> tuple[float, float]:
    started = time.perf_counter()
    asked = [Job(f"{kind}-{number}", {"seconds": seconds}) for number in range(num)]
    jobs.within(kind).run(sleep, asked)
    return time.perf_counter() - started, math.ceil(num / num_workers) * seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--screen", type=float, default=0.5, help="seconds of a candidate")
    parser.add_argument("--rungs", type=float, nargs="+", default=[2.0, 4.0, 8.0], help="seconds of each rung's trials")
    parser.add_argument("--runs", type=int, default=2)
    args = parser.parse_args()
    works = {"screening": partial(screening, seconds=args.screen), "tournament": partial(tournament, each=args.rungs)}
    default_display()  # silences Ray
    print("| workers | what | run | seconds | least | efficiency | added to a job | driver's peak |")
    print("|---|---|---|---|---|---|---|---|")
    for num_workers in args.workers:
        with head(num_workers) as address, tempfile.TemporaryDirectory() as folder:
            runner = RayTuneRunner(RunnerSettings(address=address, cpus_per_trial=1, gpus_per_trial=0), Path(folder))
            with runner.held():
                jobs = Jobs(runner, Path(folder) / "start", max_failures=0)
                seconds = start_workers(jobs, num_workers, Path(folder) / "met")
                print(f"| {num_workers} | start | | {seconds:.1f} | | | | |", flush=True)
                for run in range(args.runs):
                    jobs = Jobs(runner, Path(folder) / f"{run}", max_failures=0)
                    for name, work in works.items():
                        taken, least, num = work(jobs, num_workers)
                        added = (taken - least) * min(num_workers, num) / num
                        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                        cells = (f"{taken:.1f}", f"{least:.1f}", f"{100 * least / taken:.0f} %", f"{added:.2f} s")
                        print(f"| {num_workers} | {name} | {run} | {' | '.join(cells)} | {peak:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
