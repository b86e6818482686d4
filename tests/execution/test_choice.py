import pytest
import torch

from minitron_nas.execution import ray_session
from minitron_nas.execution.choice import check_training
from minitron_nas.execution.settings import RunnerSettings


@pytest.mark.parametrize(
    ("given", "gpus", "sharded", "on_ray"),
    [
        ({"kind": "ray"}, 0, False, False),
        ({"kind": "ray"}, 1, False, False),
        ({"kind": "ray"}, 2, False, True),
        ({"kind": "ray", "num_processes": 1}, 2, False, False),
        ({"kind": "ray", "num_processes": 2}, 0, False, True),
        ({"kind": "ray"}, 0, True, True),
        ({"kind": "local"}, 2, True, False),
        ({"kind": "ray", "address": "auto", "num_processes": 1}, 0, False, True),
    ],
)
def test_ray_is_looked_for_where_a_training_will_be_on_it(monkeypatch, given, gpus, sharded, on_ray):
    asked = []
    monkeypatch.setattr(ray_session, "check", asked.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    settings = RunnerSettings(**given)
    check_training(settings, sharded)
    assert asked == ([settings.address] if on_ray else [])
