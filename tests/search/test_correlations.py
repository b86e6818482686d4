"""What is recorded of how well one look at candidates foretold another."""

import pytest

from minitron_nas.execution.runner import Outcome
from minitron_nas.search.contest import TrialRow
from minitron_nas.search.correlations import rank_correlations


def outcome(**values):
    return Outcome("key", "completed", values, None, 1.0)


@pytest.fixture
def told(arena):
    """Screened 1 2 3 4 5, begun 4 3 2 1, after rung 1 they stand 2 1 3 4, and after rung 2 there are two."""
    candidates = [arena.candidate(intermediate_size=size) for size in (4, 8, 12, 16, 20)]
    screened = {c.id: outcome(kl_nats=1.0 + place) for place, c in enumerate(candidates)}
    screened["broken"] = Outcome("broken", "failed", None, "a defect", 1.0)
    rows = [
        TrialRow(c, 1, 32, outcome(kl_nats=after, start_kl_nats=start), promoted=after < 0.4)
        for c, after, start in zip(candidates[:4], (0.3, 0.2, 0.4, 0.5), (4.0, 3.0, 2.0, 1.0), strict=True)
    ]
    rows += [
        TrialRow(c, 2, 64, outcome(kl_nats=after, start_kl_nats=start), promoted=False)
        for c, after, start in zip(candidates[:2], (0.1, 0.15), (4.0, 3.0), strict=True)
    ]
    found = rank_correlations(screened, [*rows[4:], *rows[:4]])
    return {(row["earlier"], row["later"]): row for row in found}


def test_every_pair_of_looks_has_a_row(told):
    assert list(told) == [
        ("screen", "start"), ("screen", "rung 1"), ("screen", "rung 2"),
        ("start", "rung 1"), ("start", "rung 2"), ("rung 1", "rung 2"),
    ]  # fmt: skip


def test_one_exchange_among_four_is_a_spearman_of_0_8_and_a_kendall_of_2_thirds(told):
    # 1 - 6 * 2 / (4 * 15) = 0.8; one of six pairs is the other way round: (5 - 1) / 6.
    row = told["screen", "rung 1"]
    assert (row["num_candidates"], row["spearman"], row["kendall"]) == (4, pytest.approx(0.8), pytest.approx(2 / 3))


def test_an_order_the_other_way_round_is_minus_one(told):
    assert told["screen", "start"]["spearman"] == pytest.approx(-1.0)
    assert told["screen", "start"]["kendall"] == pytest.approx(-1.0)


def test_two_candidates_have_no_correlation(told):
    assert {name: value for name, value in told["rung 1", "rung 2"].items() if name not in ("earlier", "later")} == {
        "num_candidates": 2,
        "spearman": None,
        "kendall": None,
    }


def test_equal_values_have_no_order(arena):
    screened = {c.id: outcome(kl_nats=1.0) for c in arena.finalists}
    rows = [
        TrialRow(c, 1, 32, outcome(kl_nats=1.0 + place, start_kl_nats=1.0), promoted=False)
        for place, c in enumerate(arena.finalists)
    ]
    found = {(row["earlier"], row["later"]): row for row in rank_correlations(screened, rows)}
    assert (found["screen", "rung 1"]["num_candidates"], found["screen", "rung 1"]["spearman"]) == (4, None)
