from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_nas.importance.aggregation import over_samples, over_sequence, sample_sums

KINDS = ("mean", "l2", "variance")


def over_batch(samples, kind):
    return over_samples(sample_sums(samples), kind)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("mean", [2.0, 2.0]), ("l2", [sqrt(14), 6.0]), ("variance", [38 / 9, 8.0])],
)
def test_over_the_sequence_the_three_aggregations_are_as_computed_by_hand(kind, expected):
    tokens = torch.tensor([[[1.0, 0.0], [-2.0, 0.0], [3.0, -6.0]]])
    torch.testing.assert_close(over_sequence(tokens, kind), torch.tensor([expected]))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("mean", [3.0, 2.0]), ("l2", [sqrt(41), sqrt(12)]), ("variance", [14 / 3, 0.0])],
)
def test_over_the_batch_the_three_aggregations_are_as_computed_by_hand(kind, expected):
    samples = torch.tensor([[1.0, 2.0], [2.0, 2.0], [6.0, 2.0]])
    torch.testing.assert_close(over_batch(samples, kind), torch.tensor(expected))


def test_every_sample_is_aggregated_over_its_own_tokens():
    tokens = torch.tensor([[[1.0], [3.0]], [[10.0], [30.0]]])
    assert over_sequence(tokens, "mean").tolist() == [[2.0], [20.0]]


@pytest.mark.parametrize(("kind", "expected"), [("mean", 1.0), ("l2", 64.0), ("variance", 0.0)])
def test_half_precision_tokens_are_summed_in_float32(kind, expected):
    tokens = torch.ones(1, 4096, 1, dtype=torch.bfloat16)
    score = over_sequence(tokens, kind)
    assert (score.dtype, score.item()) == (torch.float32, expected)


def test_samples_are_summed_wider_than_float32():
    # Squares of 10,000 and 10,001 differ by 20,001, of which float32 keeps steps of eight.
    samples = torch.tensor([[10_000.0], [10_001.0], [10_002.0]])
    torch.testing.assert_close(over_batch(samples, "variance"), torch.tensor([2 / 3]), rtol=1e-6, atol=0)


@settings(max_examples=20)
@given(borders=st.lists(st.integers(0, 12), max_size=4).map(sorted), seed=st.integers(0, 2**16))
def test_batch_by_batch_is_the_same_as_all_at_once(borders, seed):
    samples = torch.rand(12, 5, generator=torch.Generator().manual_seed(seed))
    parts = zip([0, *borders], [*borders, 12], strict=True)
    sums = sum(sample_sums(samples[start:end]) for start, end in parts)
    for kind in KINDS:
        torch.testing.assert_close(over_samples(sums, kind), over_batch(samples, kind), rtol=1e-6, atol=1e-12)


@settings(max_examples=20)
@given(value=st.floats(2**-10, 1024, width=32), count=st.integers(1, 1000))
def test_a_unit_that_never_changes_has_no_variance_but_for_rounding(value, count):
    assert abs(over_batch(torch.full((count, 1), value), "variance").item()) <= 1e-14 * value**2
