"""What is said of a trial's end, with the evidence."""

from math import inf, nan

import pytest

from minitron_nas.execution.runner import Outcome
from minitron_nas.search.contest import TrialRow
from minitron_nas.search.fates import fate

SCREENED = Outcome("key", "completed", {"kl_nats": 1.25, "loss_nats": 4.0}, None, 1.0)


def a_row(arena, rung, kl, p_worse=None):
    outcome = Outcome("key", "completed", {"kl_nats": kl}, None, 1.0)
    return TrialRow(arena.finalists[0], rung, 32, outcome, promoted=False, p_worse=p_worse)


@pytest.mark.parametrize(
    ("rung", "p_worse", "won", "expected"),
    [
        (2, None, True, ("chosen", "lowest KL, 0.500 nats, after rung 2")),
        (1, 0.00123, False, ("stopped", "its KL of 0.500 nats after rung 1 was beaten (paired test: p = 0.0012)")),
        (3, 0.4, False, ("stopped", "its KL of 0.500 nats after rung 3 was beaten (paired test: p = 0.4)")),
    ],
)
def test_a_trial_s_end_is_told_with_its_rung_and_how_sure_that_is(arena, rung, p_worse, won, expected):
    assert fate(SCREENED, a_row(arena, rung, 0.5, p_worse), won) == expected


@pytest.mark.parametrize(
    ("screened", "rung", "tokens", "reason"),
    [
        (nan, None, None, "its untrained KL is not finite"),
        (1.25, 0, 0, "its KL before any training is not finite"),
        (1.25, 1, 32, "its KL after rung 1 is not finite"),
    ],
)
def test_a_kl_that_is_no_number_is_a_failure_and_beaten_by_none(arena, screened, rung, tokens, reason):
    looked = Outcome("key", "completed", {"kl_nats": screened}, None, 1.0)
    outcome = Outcome("key", "completed", {"kl_nats": inf}, None, 1.0)
    last = None if rung is None else TrialRow(arena.finalists[0], rung, tokens, outcome, promoted=False)
    assert fate(looked, last, won=False) == ("failed", reason)


def test_the_best_of_a_rung_that_did_not_complete_the_next_one_has_no_p_value(arena):
    failed = TrialRow(arena.finalists[0], 2, 64, Outcome("key", "infeasible", None, "MemoryError: 8 GB", 1.0), False)
    assert fate(SCREENED, failed, won=False) == ("failed", "rung 2 infeasible: MemoryError: 8 GB")
