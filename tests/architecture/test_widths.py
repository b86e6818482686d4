"""Widths that transformers computes, against those of published models."""

import pytest

from minitron_nas.architecture.widths import AdjustedWidth

WIDTH = AdjustedWidth("adjusts", "factor", "step")


@pytest.mark.parametrize(
    ("said", "width"),
    [
        pytest.param(12288, 8192, id="LFM2-1.2B"),
        pytest.param(10240, 6912, id="LFM2-700M"),
        pytest.param(6656, 4608, id="LFM2-350M"),
        pytest.param(384, 256, id="a whole number of steps"),
    ],
)
def test_a_width_is_two_thirds_rounded_up(said: int, width: int) -> None:
    assert WIDTH.read({"adjusts": True, "factor": 1.0, "step": 256}, said) == width


def test_a_factor_counts_before_rounding_and_none_rounds_nothing() -> None:
    assert WIDTH.read({"adjusts": True, "factor": 1.3, "step": 256}, 11008) == 9728  # int(1.3 * 7338) = 9539
    assert WIDTH.read({"adjusts": True, "factor": None, "step": 256}, 100) == 66


def test_without_the_switch_the_config_says_the_width_and_so_it_is_written() -> None:
    assert WIDTH.read({"adjusts": False}, 100) == 100
    assert WIDTH.read(WIDTH.written(), 100) == 100
