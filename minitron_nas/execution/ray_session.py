"""A connection to Ray for as long as work needs it, on an embedded Ray or on a cluster."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Set before ray is imported: no usage reports.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A trial of a Ray that is started here works where this process does, so that a relative path means the same to both.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

import ray

from minitron_nas.errors import PlanError


@contextmanager
def connected(address: str | None, folder: Path) -> Iterator[None]:
    """Be connected to Ray while the block runs; a connection that is there is used and left.

    Args:
        address: A running cluster; None starts Ray here.
        folder: Where the block's work keeps Ray's state; removed at the end.

    Raises:
        PlanError: If no cluster answers at the address.
    """
    started_here = not ray.is_initialized()
    if started_here:
        try:
            ray.init(
                address=address,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            if address is None:
                raise
            raise PlanError(
                f"runner.address={address}: no Ray cluster can be reached ({' '.join(str(error).split())}); start one "
                "with `ray start --head`, or leave runner.address out"
            ) from error
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if started_here:
            ray.shutdown()


def run_one_task() -> None:
    """Start a worker and wait for what it returns.

    Raises:
        GetTimeoutError: Of Ray, if no worker answers within two minutes.
    """
    ray.get(ray.remote(num_cpus=0)(int).remote(), timeout=120)


def most_cpus() -> float:
    """Return the CPUs of the node that has most."""
    return max(node.get("CPU", 0.0) for node in _nodes())


def cpus_beside(gpus: float) -> float:
    """Return the CPUs that go with so many GPUs of one node, on the node that has fewest for each of its GPUs.

    Args:
        gpus: How many.
    """
    shares = [node.get("CPU", 0.0) / node["GPU"] for node in _nodes() if node.get("GPU")]
    share = gpus * min(shares, default=1.0)
    return float(int(share)) if share >= 1 else share or 1.0


def num_gpus() -> int:
    """Return the GPUs of all nodes."""
    return int(sum(node.get("GPU", 0.0) for node in _nodes()))


def room_for(cpus: float, gpus: float) -> int:
    """Return how many workers all nodes hold together, each of which needs so many CPUs and GPUs of one node.

    Args:
        cpus: Of one worker.
        gpus: Of one worker.
    """
    wanted = {"CPU": cpus, "GPU": gpus}
    return sum(min(int(node.get(kind, 0.0) / each) for kind, each in wanted.items() if each) for node in _nodes())


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
