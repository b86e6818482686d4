"""Searches replayed in simulation, over many seeds, thousands of shapes and hundreds of workers.

`python tests/benchmarks/replay.py` compares policies for several rank correlations of starts and floors: regret, by
what share of the least KL of the pool after one trial that of the chosen shape is above it, mean and 90th percentile
over seeds; KD tokens in units of T, those of one trial; wall time in units of the mean trial's, for several numbers of
workers. With `defaults` it changes settings of the product's search, with `starts` what its rung 0 knows, and with
`fit` it prints what landscapes are made of. What is simulated is said in `replay_landscapes.py` and
`replay_policies.py`.
"""

import argparse
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from multiprocessing import get_context

import numpy as np
from replay_fit import show_fit
from replay_landscapes import (
    FEWEST_SHAPES,
    RECOVERIES,
    Landscape,
    Recovery,
    Surface,
    places_in,
    read_measured,
    synthetic,
)
from replay_policies import Asha, Policy, Product, SuccessiveHalving, Workers
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

from minitron_nas.search.costing import Values
from minitron_nas.search.settings import SearchSettings, procedure

POOLS = ("94M", "8B to 4B", "8B to 4B fine")
CORRELATIONS = (0.2, 0.5, 0.8, 0.95)
WORKERS = (1, 8, 128)
NUM_SEEDS = 50
SCREENING = 0.03
"""Seconds of one screening, in those of a trial: 16 s against 585 s for 102,400 tokens on two cores."""
JITTER = 0.1


TOLD = 0.05
"""What the better repairs of rung 0 tell of real shapes is at least what so much of a trial does (trained.json)."""


def ours(told: float = TOLD, **changes: object) -> Product:
    """Return the product's search with some settings changed, and what its rung 0 tells."""
    return Product(SearchSettings.model_validate(changes), told)


POLICIES: Mapping[str, Policy] = {
    "random shape": ours(**procedure("random")),
    "screen-only": ours(**procedure("screen-only")),
    "exhaustive, 18 at random": ours(**{**procedure("exhaustive"), "max_screened": 18}),
    "halving, 32 at random": SuccessiveHalving(32, 3, 4),
    "ASHA, 32 at random": Asha(32, 3, 4),
    "ours, rung 0 tells nothing new": ours(0.0),
    "ours, rung 0 as after T/20": ours(),
}
CHANGES: Sequence[Mapping[str, int]] = (
    *({"round_size": each} for each in (4, 16, 32)),
    *({"max_screened": each} for each in (16, 32, 128)),
    *({"num_finalists": each} for each in (4, 8, 12, 24, 32)),
    *({"num_rungs": each} for each in (1, 2, 4)),
    *({"reduction": each} for each in (3, 4)),
    {"num_finalists": 24, "reduction": 3},
)
"""Of the default search."""


@dataclass(frozen=True)
class Case:
    """What a replay is run over.

    Attributes:
        pool: Its name.
        policies: Those that are compared, by name.
        workers: Numbers of workers.
        recoveries: How shapes recover, by name.
        correlations: Of starts and floors.
    """

    pool: str
    policies: Mapping[str, Policy]
    workers: Sequence[int] = WORKERS
    recoveries: Mapping[str, Recovery] = field(default_factory=lambda: RECOVERIES)
    correlations: Sequence[float] = CORRELATIONS


def replayed(case: Case, seed: int) -> tuple[Values, Values]:
    """Return what every policy comes to on the landscapes of a seed.

    Returns:
        (num_recoveries, num_correlations, num_policies, num_workers, 3), regret, tokens and seconds; and
        (num_recoveries, num_correlations, 3), Spearman's of starts and floors, and of KL after one trial with KL
        untrained and after a quarter.
    """
    surface = surface_of(case.pool, seed)
    found, ranks = list[list[float]](), list[float]()
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for recovery, correlation in product(case.recoveries.values(), case.correlations):
            landscape = Landscape.of(surface, correlation, recovery)
            starts, finals = surface.starts, landscape.finals
            pairs = ((starts, landscape.floors), (starts, finals), (landscape.kls(0.25), finals))
            ranks += [spearmanr(*pair).statistic for pair in pairs]
            for policy, num_workers in product(case.policies.values(), case.workers):
                workers = Workers(num_workers, SCREENING, JITTER, seed)
                regret = landscape.regret(policy(landscape, workers))
                found.append([regret, workers.tokens, workers.seconds])
    shape = (len(case.recoveries), len(case.correlations))
    return np.array(found).reshape(*shape, len(case.policies), len(case.workers), 3), np.array(ranks).reshape(*shape, 3)


def surface_of(name: str, seed: int) -> Surface:
    """Return a synthetic surface, or that of a recorded pool, which is the same for every seed but for the noise."""
    kind, _, size = name.rpartition(" ")
    if kind != "recorded":
        return synthetic(name, seed)
    from study_search import recorded  # deferred: importing it takes seconds

    pool, kls = recorded(size, read_measured("pools"))
    return Surface(pool, places_in(pool), kls["near"], seed)


def recorded_pools() -> tuple[list[str], list[str]]:
    """Return the names of recorded pools that are large enough, and why others are left out."""
    sizes = [key.partition(" | ")[0] for key in read_measured("pools")]
    counts = {size: sizes.count(size) for size in dict.fromkeys(sizes)}
    large = [f"recorded {size}" for size, count in counts.items() if count >= FEWEST_SHAPES]
    why = [f"{size}: {n} shapes are recorded, and {FEWEST_SHAPES} needed" for size, n in counts.items()]
    reasons = [each for each, count in zip(why, counts.values(), strict=True) if count < FEWEST_SHAPES]
    return large, reasons or ([] if counts else ["there is no measured/pools.json; study_search.py makes it"])


def run(case: Case, num_seeds: int, num_processes: int) -> tuple[Values, Values]:
    """Replay over seeds; returns what `replayed` does with seeds as the first axis."""
    work = partial(replayed, case)
    if num_processes == 1:
        found = [work(seed) for seed in range(num_seeds)]
    else:
        with ProcessPoolExecutor(num_processes, get_context("fork")) as executor:
            found = list(executor.map(work, range(num_seeds)))
    results, ranks = zip(*found, strict=True)
    return np.array(results), np.array(ranks)


def show(case: Case, results: Values, ranks: Values) -> None:
    """Print a table for each recovery: a row for each policy."""
    heads = [f"{each:g}" for each in case.correlations]
    heads += ["KD tokens", *(f"time, {each} worker{'s' * (each > 1)}" for each in case.workers)]
    for place, recovery in enumerate(case.recoveries):
        print(f"\n{case.pool}, {recovery}: {len(surface_of(case.pool, 0).pool):,} shapes, {len(results)} seeds")
        names = ("untrained KL and floor", "untrained KL and KL after T", "KL after T/4 and after T")
        for look, means in zip(names, ranks[:, place].mean(axis=0).T, strict=True):
            print(f"Spearman's of {look}: {', '.join(f'{mean:.2f}' for mean in means)}")
        print(f"| policy | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
        for number, name in enumerate(case.policies):
            figures = results[:, place, :, number]
            regrets = 100 * figures[..., 0].mean(axis=2)
            cells = [f"{each.mean():.1f} / {np.percentile(each, 90):.1f} %" for each in regrets.T]
            cells.append(f"{figures[..., 1].mean():.2f} T")
            cells += [f"{each:.2f}" for each in figures[..., 2].mean(axis=(0, 1))]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def starts() -> dict[str, Policy]:
    """Return searches without rung 0 and with it, where it tells no more than the screening and where it does."""
    kinds = {"no rung 0": None, "rung 0": 0.0, "rung 0 as after T/20": TOLD}
    numbered = product(kinds.items(), (8, 12, 16, 24))
    return {
        f"{num} finalists, {kind}": Product(SearchSettings(num_finalists=num), told) for (kind, told), num in numbered
    }


def variations() -> dict[str, Policy]:
    """Return the default search, and it with some settings changed."""
    named = {", ".join(f"{name}={value}" for name, value in changes.items()): changes for changes in CHANGES}
    return {"default": ours(), **{name: ours(**changes) for name, changes in named.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", default="policies", choices=("policies", "defaults", "starts", "fit"))
    parser.add_argument(
        "--pools", help=f"of {', '.join(POOLS)}, and recorded ones; all but the last, and what is recorded"
    )
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    if args.part == "fit":
        show_fit()
        return
    recorded, reasons = recorded_pools()
    for reason in reasons:
        print(f"left out: {reason}")
    names = args.pools.split(",") if args.pools else [*POOLS[:-1], *recorded]
    if unknown := set(names) - {*POOLS, *recorded}:
        parser.error(f"no pool {', '.join(sorted(unknown))}; choose from {', '.join((*POOLS, *recorded))}")
    policies = {"policies": lambda: POLICIES, "defaults": variations, "starts": starts}[args.part]()
    for name in names:
        case, started = Case(name, policies), time.perf_counter()
        show(case, *run(case, args.seeds, args.processes))
        print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
