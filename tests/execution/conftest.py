import logging
from pathlib import Path

import pytest

from minitron_nas.execution import runner


@pytest.fixture(autouse=True)
def _garbage_stays(monkeypatch):
    """Between jobs garbage is collected, which takes longer than these jobs."""
    monkeypatch.setattr(runner, "release_memory", lambda: None)


@pytest.fixture(scope="session")
def one_ray():
    """An embedded Ray of two CPUs, started once for all tests."""
    import ray

    from minitron_nas.execution import ray_tune  # noqa: F401 - sets what Ray reads from the environment

    ray.init(
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=10**8,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def ray_results():
    """What lies in Ray's own results folder, which this package never uses."""

    def listed():
        return sorted(Path.home().glob("ray_results/*"))

    before = listed()
    return lambda: [entry for entry in listed() if entry not in before]
