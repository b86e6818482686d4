from pathlib import Path

import pytest

from minitron_nas.execution import runner


@pytest.fixture(autouse=True)
def _garbage_stays(monkeypatch):
    """Between jobs garbage is collected, which takes longer than these jobs."""
    monkeypatch.setattr(runner, "release_memory", lambda: None)


@pytest.fixture(scope="session")
def ray_results():
    """What lies in Ray's own results folder, which this package never uses."""

    def listed():
        return sorted(Path.home().glob("ray_results/*"))

    before = listed()
    return lambda: [entry for entry in listed() if entry not in before]
