"""How many devices work at what."""

import pytest
import torch

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.pipeline.devices import Devices

EIGHT = Devices("a device", 8, 80 * 10**9)


@pytest.mark.parametrize(
    ("runner", "of_a_trial", "at_once"),
    [
        ({"kind": "ray"}, 1, 8),
        ({"kind": "ray", "gpus_per_trial": 3}, 3, 2),
        ({"kind": "ray", "gpus_per_trial": 16}, 8, 1),
        ({"kind": "local"}, 8, 1),
    ],
)
def test_trials_share_the_devices(runner: dict[str, object], of_a_trial: int, at_once: int) -> None:
    settings = RunnerSettings(**runner)
    assert (EIGHT.of_a_trial(settings), EIGHT.trials_at_once(settings)) == (of_a_trial, at_once)


def test_a_distillation_takes_as_many_as_divide_its_batch() -> None:
    settings, runner = DistillationSettings(micro_batch_sequences=2), RunnerSettings()
    assert EIGHT.of_a_distillation(runner, settings, Schedule(10, 32, 64)) == 8
    assert EIGHT.of_a_distillation(runner, settings, Schedule(10, 12, 64)) == 6
    assert EIGHT.of_a_distillation(RunnerSettings(num_processes=4), settings, Schedule(10, 32, 64)) == 4


def test_the_cpus_of_a_machine_are_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    here = Devices.here()
    assert (here.name, here.number, here.are_here) == ("cpu", 1, True)
    assert here.memory_bytes > 0
