from math import nan

import pytest

from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import TrialError
from minitron_nas.execution.runner import Outcome
from minitron_nas.search.choice import Choice
from minitron_nas.search.contest import Contest
from minitron_nas.space.enumerate import Candidate

FINALISTS = [
    Candidate(Architecture("llama", layers, 64, 128, 4, 2, 16, 320), 1000 * layers) for layers in range(12, 0, -1)
]
"""Whose KLs are given in this order."""


def ended(kls, noise=()):
    """What the first trials of a rung come to that have these KLs, on four sequences of one token."""
    noise = noise or [0.0] * len(kls)
    outcomes = {}
    for candidate, kl, each in zip(FINALISTS, kls, noise, strict=False):
        sequences = [kl + each * sign for sign in (1, -1, 1, -1)]
        value = {"kl_nats": kl, "sequence_kl_nats": sequences}
        outcomes[candidate.id] = Outcome(candidate.id, "completed", value, None, seconds=0.0)
    return outcomes


def test_half_go_on_in_the_order_of_the_screening_and_rows_say_what_was_seen():
    contest = Contest(FINALISTS[:4], [30, 60], 2, Choice())
    contest.end_rung(ended([3.0, 1.0, 2.0, 4.0]))
    assert (contest.alive, contest.rung, contest.is_over) == ([FINALISTS[1], FINALISTS[2]], 2, False)
    contest.end_rung(ended([9.0, 2.0, 1.0, 9.0]))
    assert (contest.alive, contest.is_over) == ([FINALISTS[2]], True)
    assert [(row.candidate, row.rung, row.tokens, row.promoted) for row in contest.rows] == [
        (FINALISTS[0], 1, 30, False),
        (FINALISTS[1], 1, 30, True),
        (FINALISTS[2], 1, 30, True),
        (FINALISTS[3], 1, 30, False),
        (FINALISTS[1], 2, 60, False),
        (FINALISTS[2], 2, 60, True),
    ]


def test_what_noise_may_explain_goes_on_beyond_the_quota():
    contest = Contest(FINALISTS[:4], [30, 60], 2, Choice())
    contest.end_rung(ended([1.0, 1.1, 1.2, 1.3], noise=(0.0, 0.0, 0.9, 0.9)))
    assert contest.alive == FINALISTS[:3]


def test_a_clear_order_twice_ends_the_contest_before_the_last_rung():
    contest = Contest(FINALISTS[:6], [30, 60, 120], 2, Choice())
    clear = ended(range(1, 13), noise=[0.01 * place for place in range(12)])
    contest.end_rung(clear)
    assert (contest.alive, contest.is_over) == (FINALISTS[:3], False)
    contest.end_rung(clear)
    assert (contest.alive, contest.is_over) == (FINALISTS[:1], True)


def test_a_rung_without_a_finite_kl_is_refused():
    contest = Contest(FINALISTS[:4], [30], 2, Choice())
    with pytest.raises(TrialError, match="no trial of rung 1 completed with a finite KL: its KL is not finite"):
        contest.end_rung(ended([nan] * 4))


def test_what_is_known_before_training_is_no_order_that_decides():
    contest = Contest(FINALISTS, [0, 30, 60], 2, Choice())
    clear = ended(range(1, 13), noise=[0.01 * place for place in range(12)])
    assert contest.rung == 0
    contest.end_rung(clear)
    assert (contest.alive, contest.rung, contest.is_over) == (FINALISTS[:3], 1, False)
    contest.end_rung(clear)
    assert (contest.alive, contest.is_over) == (FINALISTS[:2], False)
    contest.end_rung(clear)
    assert (contest.alive, contest.is_over) == (FINALISTS[:1], True)
    assert [(row.rung, row.tokens) for row in contest.rows] == [(0, 0)] * 12 + [(1, 30)] * 3 + [(2, 60)] * 2


def test_training_ends_when_one_is_left_and_does_not_begin_so():
    contest = Contest(FINALISTS[:2], [0, 30, 60], 2, Choice())
    contest.end_rung(ended([1.0, 2.0]))
    assert (contest.alive, contest.is_over) == (FINALISTS[:2], False)
    contest.end_rung(ended([1.0, 2.0], noise=(0.0, 0.01)))
    assert (contest.alive, contest.is_over) == (FINALISTS[:1], True)
