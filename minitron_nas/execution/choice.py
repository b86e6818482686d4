"""Which runner the settings name."""

from pathlib import Path

import torch

from minitron_nas.execution.local import LocalRunner
from minitron_nas.execution.runner import Runner
from minitron_nas.execution.settings import RunnerSettings


def make_runner(settings: RunnerSettings, folder: Path) -> Runner:
    """Return the runner that the settings name.

    Args:
        settings: Local or Ray.
        folder: Where Ray Tune keeps its experiment state.
    """
    if settings.kind == "local":
        return LocalRunner(settings)
    from minitron_nas.execution.ray_tune import RayTuneRunner  # deferred: Ray is imported where it is used

    return RayTuneRunner(settings, folder)


def check_cluster(settings: RunnerSettings, folder: Path) -> None:
    """Refuse a Ray cluster that does not answer or has no room for a trial, or a Ray that cannot be started here.

    Args:
        settings: Name it.
        folder: For Ray's state; removed.

    Raises:
        PlanError: Says what to change.
        MachineError: If Ray's folder cannot be written to.
    """
    from minitron_nas.execution.ray_tune import RayTuneRunner  # deferred: Ray is imported where it is used

    RayTuneRunner(settings, folder).check()


def count_nodes(settings: RunnerSettings, folder: Path) -> int:
    """Return how many nodes a Ray cluster has.

    Args:
        settings: Name it.
        folder: For Ray's state; removed.

    Raises:
        PlanError: If no cluster answers.
    """
    from minitron_nas.execution import ray_session  # deferred: Ray is imported where it is used

    with ray_session.connected(settings.cluster, folder):
        return ray_session.num_nodes()


def count_gpus(settings: RunnerSettings, folder: Path) -> int:
    """Return how many GPUs all nodes of a Ray cluster have.

    Args:
        settings: Name it.
        folder: For Ray's state; removed.

    Raises:
        PlanError: If no cluster answers.
    """
    from minitron_nas.execution import ray_session  # deferred: Ray is imported where it is used

    with ray_session.connected(settings.cluster, folder):
        return ray_session.num_gpus()


def cluster_devices(settings: RunnerSettings, folder: Path) -> tuple[str, int]:
    """Return of what kind the devices of a Ray cluster are, and how many it has.

    Args:
        settings: Name it.
        folder: For Ray's state; removed.

    Raises:
        PlanError: If no cluster answers.
    """
    from minitron_nas.execution import ray_session  # deferred: Ray is imported where it is used

    with ray_session.connected(settings.cluster, folder):
        return ray_session.devices()


def check_training(settings: RunnerSettings, sharded: bool) -> None:
    """Refuse a Ray cluster that does not answer, or a Ray that cannot be started here, if a training will be on Ray.

    Args:
        settings: Name it, and the number of processes; one for each GPU without it.
        sharded: Whether DeepSpeed trains, which Ray starts in one process, too.

    Raises:
        PlanError: Says what to change.
        MachineError: If Ray's folder cannot be written to.
    """
    several = sharded or (settings.num_processes or torch.cuda.device_count()) > 1
    if not settings.on_cluster and (settings.kind != "ray" or not several):
        return
    from minitron_nas.execution import ray_session  # deferred: Ray is imported where it is used

    ray_session.check(settings.cluster)
