"""How fast this device trains."""

import pytest
import torch

from minitron_nas.execution import throughput


def test_it_is_half_of_the_pace_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    now, products = [0.0], []

    def multiply(left: torch.Tensor, right: torch.Tensor) -> None:
        products.append(left.shape)
        now[0] += 0.25

    monkeypatch.setattr(throughput, "_multiply", multiply)
    monkeypatch.setattr(throughput, "pick_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    assert throughput.measure_throughput(1.0) == pytest.approx(0.5 * 2 * 1024**3 / 0.25)
    assert len(products) == 5  # one of them before the clock starts


def test_a_real_device_computes_something() -> None:
    assert throughput.measure_throughput(0.01) > 1e6
