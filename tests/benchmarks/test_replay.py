import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minitron_nas.search.settings import SearchSettings


@pytest.fixture
def replay(load: Any) -> Any:
    return load("replay")


@pytest.fixture
def policies(load: Any) -> Any:
    return load("replay_policies")


@pytest.fixture
def landscapes(load: Any) -> Any:
    return load("replay_landscapes")


def landscape(landscapes: Any, seed: int = 3, correlation: float = 0.5, noise: Any = None) -> Any:
    """A tenth of the pool at 94M."""
    pool, _ = landscapes.pool_of("94M")
    indices = np.arange(0, len(pool), 10)
    columns = {name: values[indices] for name, values in pool.columns.items()}
    small = landscapes.Pool(pool.source, pool.candidates.taken(indices), columns, {})
    starts = landscapes.synthetic("94M", seed).starts[indices]
    surface = landscapes.Surface(small, landscapes.places_in(small), starts, seed, noise or landscapes.Noise())
    return landscapes.Landscape.of(surface, correlation, landscapes.RECOVERIES["long trials"])


def workers(policies: Any, num: int, jitter: float = 0.0) -> Any:
    return policies.Workers(num, 0.25, jitter, seed=0)


EXHAUSTIVE = {"sampler": "random", "max_screened": None, "num_finalists": None, "num_rungs": 1}
CHEAP = {"max_screened": 16}


def test_the_same_seed_gives_the_same_result_and_another_one_another(replay: Any) -> None:
    case = replay.Case("94M", {"ASHA": replay.Asha(8, 3, 2), "ours": replay.ours(**CHEAP)}, (1, 8), correlations=(0.5,))
    first, again, other = replay.replayed(case, 1), replay.replayed(case, 1), replay.replayed(case, 2)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_exhaustive_over_the_whole_pool_has_no_regret_without_noise(policies: Any, landscapes: Any) -> None:
    clear = landscape(landscapes, noise=landscapes.Noise(8, 0.3, 0.0))
    spent = workers(policies, 8)
    assert clear.regret(policies.Product(SearchSettings.model_validate(EXHAUSTIVE))(clear, spent)) == 0
    assert spent.tokens == pytest.approx(len(clear.surface.pool))
    assert clear.regret(int(np.argmax(clear.finals))) > 0.5


def test_more_workers_never_make_the_exhaustive_search_slower(policies: Any, landscapes: Any) -> None:
    search, drawn = policies.Product(SearchSettings.model_validate(EXHAUSTIVE)), landscape(landscapes)
    seconds = []
    for num in (1, 2, 3, 5, 8, 16, 32, 59, 60, 128):
        spent = workers(policies, num, jitter=0.3)
        search(drawn, spent)
        seconds.append(spent.seconds)
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(seconds))
    assert seconds[0] > 10 * seconds[-1]


def test_tokens_and_seconds_are_those_counted_by_hand(policies: Any, landscapes: Any) -> None:
    drawn = landscape(landscapes)
    spent = workers(policies, 4)
    policies.SuccessiveHalving(8, 3, 2)(drawn, spent)
    # 8 shapes to 1/4, the better 4 from there to 1/2, the better 2 to 1.
    assert spent.tokens == pytest.approx(8 / 4 + 4 / 4 + 2 / 2)
    spent = workers(policies, 8)
    policies.Product(SearchSettings(max_screened=16, num_finalists=1, num_rungs=2))(drawn, spent)
    # Two rounds of eight at 0.25 each, then one shape to 1/2, as nobody is left to beat.
    assert spent.tokens == pytest.approx(1 / 2)
    chosen = policies.Product(SearchSettings(max_screened=16, num_finalists=1, num_rungs=0))(
        drawn, workers(policies, 8)
    )
    assert spent.seconds == pytest.approx(2 * 0.25 + float(drawn.surface.costs[chosen]) / 2)


def test_whoever_is_free_takes_the_next_piece_of_work(policies: Any) -> None:
    spent = workers(policies, 2)
    spent.run_all(policies.Work(0, 0.5, seconds, 1.0) for seconds in (3.0, 1.0, 1.0, 4.0))
    # The first keeps one worker until 3; the other does two until 2, and the last until 6.
    assert spent.seconds == 6
    assert spent.tokens == 2
    spent.run_all([policies.Work(0, 0.5, 1.0, 1.0)])
    assert spent.seconds == 7


def test_asha_promotes_one_in_eta_of_those_that_have_ended_a_rung(policies: Any) -> None:
    # Algorithm 2 of arXiv 1810.05934 with eta = 2: whoever is in the better half of a rung goes on, from the highest
    # rung first; where nobody may, another is begun.
    rungs = policies.Rungs([10, 11, 12, 13, 14], [0.25, 0.5, 1.0], 2)
    assert rungs.next() == (10, 0.0, 0.25)
    rungs.end(10, 0.25, 3.0)
    assert rungs.next() == (11, 0.0, 0.25), "half of one is nobody"
    rungs.end(11, 0.25, 4.0)
    assert rungs.next() == (10, 0.25, 0.5), "the better of two goes on, although worse ones may follow"
    assert rungs.next() == (12, 0.0, 0.25), "nobody is promoted twice"
    rungs.end(12, 0.25, 1.0)
    assert rungs.next() == (12, 0.25, 0.5), "the best of three, of whom one may go on, and it has not"
    rungs.end(10, 0.5, 2.5)
    rungs.end(12, 0.5, 0.9)
    assert rungs.next() == (12, 0.5, 1.0), "the highest rung first"
    assert rungs.next() == (13, 0.0, 0.25)
    assert rungs.next() == (14, 0.0, 0.25)
    assert rungs.next() is None
    assert rungs.best() == 12
    rungs.end(12, 1.0, 0.8)
    rungs.end(13, 0.25, 0.5)
    assert rungs.next() == (13, 0.25, 0.5), "two of four may go on: 13, and 12, which has"


def test_floors_rank_shapes_as_starts_do_as_far_as_is_asked_for(landscapes: Any) -> None:
    surface = landscapes.synthetic("94M", 1)
    for correlation in (0.2, 0.5, 0.8, 0.95):
        drawn = landscapes.Landscape.of(surface, correlation, landscapes.RECOVERIES["long trials"])
        assert landscapes.spearmanr(surface.starts, drawn.floors).statistic == pytest.approx(correlation, abs=0.02)
        curve = [drawn.kls(tokens) for tokens in (0.0, 0.25, 1.0, 1e9)]
        assert curve[0] == pytest.approx(surface.starts, rel=1e-12)
        assert all((later < earlier).all() for earlier, later in pairwise(curve))
        assert curve[-1] == pytest.approx(drawn.floors, rel=1e-6)


def test_no_floor_is_above_its_start_even_if_the_order_must_then_follow_it_more(landscapes: Any) -> None:
    surface = landscapes.synthetic("94M", 0)
    drawn = landscapes.Landscape.of(surface, 0.2, landscapes.RECOVERIES["short trials"])
    assert (drawn.floors < surface.starts).all()
    assert landscapes.spearmanr(surface.starts, drawn.floors).statistic > 0.3


def test_known_terms_and_curves_are_found_again(landscapes: Any, load: Any) -> None:
    fit = load("replay_fit")
    pool, _ = landscapes.pool_of("94M")
    cut = landscapes.cuts(pool.source, pool.columns)
    kls = landscapes.terms(cut) @ np.array(landscapes.COEFFICIENTS)
    coefficients, errors = fit.fitted_terms(cut, kls)
    assert landscapes.terms(cut) @ coefficients == pytest.approx(kls, rel=0.01)
    assert np.abs(errors).max() < 0.01
    tokens = [0.0, 0.1, 0.2, 0.5, 1.0]
    shares = [0.6 + 0.4 / (1 + each / 0.2) for each in tokens]
    assert fit.fitted_curve(shares, tokens, 1.0) == pytest.approx((0.6, 0.2, 0.0), abs=1e-4)


def test_a_recorded_pool_is_left_out_with_the_reason_while_it_is_small(
    replay: Any, landscapes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscapes, "MEASURED", tmp_path)
    assert replay.recorded_pools() == ([], ["there is no measured/pools.json; study_search.py makes it"])
    rows = {f"94M | l{number}": {} for number in range(99)}
    (tmp_path / "pools.json").write_text(json.dumps(rows))
    assert replay.recorded_pools() == ([], ["94M: 99 shapes are recorded, and 100 needed"])
    (tmp_path / "pools.json").write_text(json.dumps({**rows, "94M | l99": {}}))
    assert replay.recorded_pools() == (["recorded 94M"], [])
