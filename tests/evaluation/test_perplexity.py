"""Perplexity of any loss."""

import math

import pytest

from minitron_nas.evaluation.perplexity import perplexity


def test_a_loss_beyond_all_numbers_has_an_infinite_perplexity() -> None:
    assert perplexity(math.log(2)) == pytest.approx(2.0)
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))
