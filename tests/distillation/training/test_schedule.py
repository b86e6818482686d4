"""Steps, batch and learning rate of a schedule, computed by hand."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.training.schedule import Schedule


def settings(**values):
    return DistillationSettings(**{"min_learning_rate_fraction": 0.1, "warmup_fraction": 0.05, **values})


@pytest.mark.parametrize(
    ("tokens", "batch", "steps"),
    [
        (200 * 7 * 16, 7, 200),
        (201 * 7 * 16 - 1, 7, 200),  # what does not fill a batch is left out
        (200 * 8 * 16 - 1, 7, 228),
        (10, 1, 1),  # less than a sequence
        (5 * 16, 1, 5),  # less than 200 steps of one sequence
        (200 * 2000 * 16, 1152, 347),  # the papers' batch is the largest
    ],
)
def test_without_a_batch_there_are_about_200_steps(tokens, batch, steps):
    assert Schedule.resolve(settings(), tokens, 16) == Schedule(steps, batch, 16)


@pytest.mark.parametrize(
    ("wanted", "micro", "batch"),
    [(15, 1, 15), (31, 1, 24), (244, 1, 192), (7, 2, 6), (1, 2, 1), (3, 8, 3), (31, 2, 30), (300, 2, 256)],
)
def test_a_batch_divides_into_micro_batches_and_a_larger_one_over_many_processes(wanted, micro, batch):
    values = settings(micro_batch_sequences=micro)
    assert Schedule.resolve(values, 200 * wanted * 16, 16).batch_sequences == batch


def test_a_named_batch_is_taken_and_no_more_tokens_than_are_given():
    schedule = Schedule.resolve(settings(batch_sequences=4), 1000, 16)
    assert schedule == Schedule(15, 4, 16)
    assert (schedule.tokens_per_step, schedule.num_tokens) == (64, 960)


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (64, 1), (127, 1), (128, 2), (640, 10), (641, 10), (10**9, 10)])
def test_a_rung_ends_after_the_last_whole_step_of_its_tokens_within_the_schedule(tokens, steps):
    assert Schedule(10, 4, 16).steps_for(tokens) == steps


def test_the_learning_rate_rises_from_the_first_step_on_and_reaches_the_peak_after_the_warm_up():
    factors = [Schedule(100, 1, 16).learning_rate_factor(step, settings()) for step in range(7)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert factors[6] < 1


def test_without_warm_up_the_first_step_is_at_the_peak():
    assert Schedule(100, 1, 16).learning_rate_factor(0, settings(warmup_fraction=0.0)) == 1


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (25, 0.8682), (50, 0.55), (75, 0.2318), (100, 0.1), (120, 0.1)])
def test_the_learning_rate_falls_along_half_a_cosine_to_its_end(step, factor):
    schedule = Schedule(100, 1, 16)
    assert schedule.learning_rate_factor(step, settings(warmup_fraction=0.0)) == pytest.approx(factor, abs=5e-5)


@given(
    steps=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
    end=st.floats(0, 1),
)
def test_the_learning_rate_rises_once_and_falls_once_between_zero_and_the_peak(steps, warmup, end):
    values = settings(warmup_fraction=warmup, min_learning_rate_fraction=end)
    factors = [Schedule(steps, 1, 16).learning_rate_factor(step, values) for step in range(steps)]
    top = factors.index(max(factors))
    assert factors == sorted(factors[: top + 1]) + sorted(factors[top + 1 :], reverse=True)
    assert all(0 < factor <= 1 for factor in factors)
