"""Each distance against hand-computed numbers, torch's own functions and plain autograd."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import cosine_similarity, cross_entropy, log_softmax, mse_loss, softmax

from minitron_nas.distillation.loss.gradients import (
    cosine,
    distance_of,
    forward_kl,
    jensen_shannon,
    next_token,
    reverse_kl,
    squared_error,
)
from minitron_nas.distillation.settings import DistillationSettings

NAMES = ("forward_kl", "reverse_kl", "jsd", "mse", "cosine")
TEACHER = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
STUDENT = torch.full((1, 3), 1 / 3, dtype=torch.float64)


def numbers(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl(one, other):
    return kl_divergence(Categorical(logits=one), Categorical(logits=other))


def plain_distance(name, student, teacher, beta):
    """The distances of rows of logits, by torch's own functions where it has them."""
    probs, target = softmax(student, dim=-1), softmax(teacher, dim=-1)
    if name == "jsd":
        mixture = (beta * target + (1 - beta) * probs).log()
        return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)
    return {
        "forward_kl": lambda: kl(teacher, student),
        "reverse_kl": lambda: kl(student, teacher),
        "mse": lambda: mse_loss(probs, target, reduction="none").sum(dim=-1),
        "cosine": lambda: 1 - cosine_similarity(probs, target, dim=-1),
    }[name]()


def by_name(name, student, teacher, beta=0.5):
    distance = distance_of(DistillationSettings(loss=name, jsd_beta=beta))
    return distance(log_softmax(student, dim=-1), log_softmax(teacher, dim=-1))


@given(
    name=st.sampled_from(NAMES),
    num_tokens=st.integers(1, 5),
    vocab_size=st.integers(2, 30),
    scale=st.sampled_from((0.1, 1.0, 5.0)),
    beta=st.sampled_from((0.01, 0.3, 0.5, 0.9)),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_the_plain_formula(name, num_tokens, vocab_size, scale, beta, seed):
    student = numbers(num_tokens, vocab_size, seed=seed, scale=scale).requires_grad_()
    teacher = numbers(num_tokens, vocab_size, seed=seed + 100, scale=scale)
    expected = plain_distance(name, student, teacher, beta)
    (slope,) = torch.autograd.grad(expected.sum(), student)
    values, gradient = by_name(name, student.detach(), teacher, beta)
    torch.testing.assert_close(values, expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_distribution_has_no_distance_to_itself_and_no_gradient(name):
    logits = numbers(7, 11)
    values, gradient = by_name(name, logits, logits + 3.0)  # a constant changes no softmax
    assert values.abs().max() <= 1e-15
    assert gradient.abs().max() <= 1e-15


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("certain", ["student", "teacher", "both"])
def test_probabilities_that_are_zero_in_float32_leave_finite_values_and_gradients(name, certain):
    sides = {side: torch.zeros(1, 4) for side in ("student", "teacher")}
    for position, side in enumerate(("student", "teacher")):
        if certain in (side, "both"):
            sides[side][0, position] = 300.0
    values, gradient = by_name(name, **sides)
    assert values.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        # p = (1/2, 1/4, 1/4), q = (1/3, 1/3, 1/3)
        (forward_kl, 0.5 * math.log(9 / 8)),  # 1/2 ln 3/2 + 1/2 ln 3/4
        (reverse_kl, math.log(32 / 27) / 3),  # 1/3 ln 2/3 + 2/3 ln 4/3
        (squared_error, 1 / 24),  # (1/6)^2 + 2 (1/12)^2
        (cosine, 1 - 2 * math.sqrt(2) / 3),  # p.q = 1/3, |p|^2 = 3/8, |q|^2 = 1/3
    ],
)
def test_distances_of_a_half_and_two_quarters_to_thirds(distance, expected):
    values, _ = distance(STUDENT.log(), TEACHER.log())
    assert values.item() == pytest.approx(expected, rel=1e-12)


def test_the_jensen_shannon_of_two_certain_opposites_is_the_entropy_of_beta():
    far = torch.tensor([[0.0, -800.0]]).double()
    values, _ = jensen_shannon(far.clone(), far.flip(1), beta=0.25)
    assert values.item() == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75), rel=1e-12)


@pytest.mark.parametrize(("beta", "limit"), [(1e-7, forward_kl), (1 - 1e-7, reverse_kl)])
def test_the_jensen_shannon_tends_to_both_divergences(beta, limit):
    student, teacher = (log_softmax(numbers(5, 9, seed=seed), dim=-1) for seed in (1, 2))
    values, gradient = jensen_shannon(student.clone(), teacher.clone(), beta)
    expected, slope = limit(student, teacher)
    torch.testing.assert_close(values / min(beta, 1 - beta), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient / min(beta, 1 - beta), slope, rtol=1e-5, atol=1e-7)


def test_the_jensen_shannon_of_one_half_is_symmetric():
    one, other = (log_softmax(numbers(5, 9, seed=seed), dim=-1) for seed in (1, 2))
    there, _ = jensen_shannon(one.clone(), other.clone(), 0.5)
    back, _ = jensen_shannon(other, one, 0.5)
    torch.testing.assert_close(there, back)


def test_the_next_token_loss_is_torchs_cross_entropy_with_weights_of_tokens():
    logits, labels = numbers(6, 9).requires_grad_(), torch.tensor([1, 0, 8, 8, 3, 2])
    weights = torch.tensor([0.5, 0.0, 1.0, 2.0, 0.25, 0.0]).double()
    expected = cross_entropy(logits, labels, reduction="none") @ weights
    expected.backward()
    log_probs = log_softmax(logits.detach(), dim=-1)
    before = log_probs.clone()
    value, gradient = next_token(log_probs, labels, weights)
    assert torch.equal(log_probs, before)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, logits.grad)
