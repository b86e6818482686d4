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
# A worker works where this process does, so that a relative path means the same to both.
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
