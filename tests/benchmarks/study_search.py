"""Whole pools of shapes screened once, and samplers replayed over them: E1 of the search.

`python tests/benchmarks/study_search.py pool --data DATA --out OUT --size 94M --shapes 300` screens so many shapes of
SmolLM2-135M, drawn evenly out of the space `default`, near (the corpus' validation split) and far (WikiText-2), and
keeps each as it comes: killed, it goes on. `--teacher` takes another model, with a `--measured` of its own.
`python tests/benchmarks/study_search.py replay` needs nothing but what is kept in `measured/pools.json`, or in the file
that `--measured` names: for each pool and sampler the regret, the share of the least KL by which the best shape found
is behind it, after so many evaluations, over twenty seeds. Of two recorded sizes each also teaches the other, as
`search.extends` does.
"""

import argparse
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from study import SEED, Measurements
from study_starts import CALIBRATION, SCORES, Starts

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.execution.device import compute_dtype, pick_device
from minitron_nas.execution.runner import Outcome
from minitron_nas.families.catalog import layout_of
from minitron_nas.pipeline.display import default_display
from minitron_nas.pruning.settings import RANDOM_TOKENS
from minitron_nas.pruning.student import build_student
from minitron_nas.search.costing import Costing, Deployment
from minitron_nas.search.exploration import explore, make_sampler
from minitron_nas.search.improvement import expected_improvement
from minitron_nas.search.pareto import pareto_front
from minitron_nas.search.pool import Pool
from minitron_nas.search.proposals import RandomSampler, scaled
from minitron_nas.search.settings import SearchSettings
from minitron_nas.settings import format_count, parse_count
from minitron_nas.space.axes import load_space
from minitron_nas.space.enumerate import enumerate_candidates

MEASURED = Path(__file__).parent / "measured" / "pools.json"
SEQUENCES = 3
"""Of each text, 512 tokens long."""
TEXTS = ("near", "far")
EVALUATIONS = (8, 16, 24, 32, 64)
NUM_SEEDS = 20
SOURCE = "source"
"""The key of the shape that a pool is cut from, where it is not SmolLM2-135M's."""
TAUGHT = "taught pool"
"""The pool sampler that knows what it measured of another recorded size, 24 shapes."""
SAMPLERS = ("random", "plain GP", "tpe", "gp", "nsga2", "pool", TAUGHT)


def screen_pool(study: Starts, size: int, num_shapes: int) -> None:
    """Measure shapes of a size that are not measured yet."""
    teacher = study.checkpoint
    if study.source is not None:
        study.measurements.once(SOURCE, lambda: {"architecture": teacher.architecture.to_dict()})
    found = enumerate_candidates(load_space("default"), size, teacher.architecture, teacher.layout)
    candidates = list(found.candidates)
    random.Random(SEED).shuffle(candidates)
    prepared = study.prepared(study.calibration(CALIBRATION), SCORES, RANDOM_TOKENS)
    streams = {name: study.stream(study.evaluation(name, SEQUENCES)) for name in TEXTS}
    device = pick_device()

    def measure(shape: Architecture) -> dict[str, Any]:
        model = build_student(prepared, shape, compute_dtype(device)).to(device)
        losses = {name: validate(model, stream.tokens, stream.signal) for name, stream in streams.items()}
        return {**shape.sizes(), **{name: round(each.kl_nats, 5) for name, each in losses.items()}}

    for candidate in candidates[:num_shapes]:
        shape = candidate.architecture
        study.measurements.once(f"{format_count(size)} | {shape.id}", lambda shape=shape: measure(shape))


def recorded(size: str, rows: Mapping[str, Any]) -> tuple[Pool, dict[str, np.ndarray]]:
    """Return the pool of what was measured at a size, and the KLs of its shapes by text."""
    source = (
        Architecture(**rows[SOURCE]["architecture"])
        if SOURCE in rows
        else load_space("smollm2-135m").source_architecture()
    )
    layout = layout_of(source.model_type)
    found = enumerate_candidates(load_space("default"), parse_count(size), source, layout)
    pool = Pool.of(found, Costing(source, layout, 256, Deployment(1, 4096)))
    places = {candidate.id: index for index, candidate in enumerate(pool.candidates)}
    kept = {places[key.partition(" | ")[2]]: row for key, row in rows.items() if key.startswith(f"{size} | ")}
    indices = np.array(sorted(kept))
    columns = {name: values[indices] for name, values in pool.columns.items()}
    measured = Pool(source, pool.candidates.taken(indices), columns, {})
    return measured, {text: np.array([kept[index][text] for index in indices.tolist()]) for text in TEXTS}


class PlainProcess:
    """Eight shapes at random, then rounds of eight by expected improvement under a Matern process: the mark to beat."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self._features, self._random = scaled(pool), RandomSampler(pool, seed)

    def propose(self, measured: Mapping[int, float | None], num: int) -> list[int]:
        if len(measured) < 8:
            return self._random.propose(measured, num)
        known, values = list(measured), np.log(list(measured.values()))
        kernel = ConstantKernel() * Matern(np.ones(self._features.shape[1]), nu=2.5) + WhiteKernel(1e-3)
        process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        process.fit(self._features[known], values)
        gains = expected_improvement(*process.predict(self._features, return_std=True), values.min())
        gains[known] = -1
        best: list[int] = np.argsort(-gains)[:num].tolist()
        return best


def sampler_of(name: str, pool: Pool, seed: int, other: tuple[Pool, np.ndarray] | None) -> Any:
    """Return a sampler by the name that the table gives it."""
    if name == "plain GP":
        return PlainProcess(pool, seed)
    if name != TAUGHT:
        return make_sampler(pool, SearchSettings(sampler=name), seed)
    assert other is not None
    larger, kls = other
    sampler, measured = make_sampler(larger, SearchSettings(), seed), dict[int, float]()
    while len(measured) < 24:
        measured |= {index: float(kls[index]) for index in sampler.propose(measured, 8)}
    beyond = [(larger.candidates[index].architecture.sizes(), kl) for index, kl in measured.items()]
    return make_sampler(pool, SearchSettings(), seed, beyond)


def regrets(
    name: str, pool: Pool, kls: np.ndarray, num: int, other: tuple[Pool, np.ndarray] | None = None
) -> np.ndarray:
    """Return (num_seeds, num_evaluations): how far the best found is behind the best, as a share of it."""
    table = []
    for seed in range(NUM_SEEDS):
        sampler, measured, row = sampler_of(name, pool, seed, other), dict[int, float](), []
        while len(measured) < min(num, len(kls)):
            measured |= {index: float(kls[index]) for index in sampler.propose(measured, 8)}
            row.append(min(measured.values()) / kls.min() - 1)
        table.append(row)
    return np.array(table)


def replay(samplers: list[str], most: int, measured: Path) -> None:
    """Print what samplers find in each pool, and when the search ends of itself."""
    warnings.simplefilter("ignore")
    rows = Measurements(measured).all()
    columns = [each for each in EVALUATIONS if each <= most]
    sizes = list(dict.fromkeys(key.partition(" | ")[0] for key in rows if key != SOURCE))
    for size in sizes:
        pool, kls = recorded(size, rows)
        others = [recorded(each, rows) for each in sizes if each != size]
        other = (others[0][0], others[0][1]["near"]) if others else None
        near, far = kls["near"], kls["far"]
        agreement = spearmanr(near, far).statistic
        print(
            f"\n{size}: {len(near)} shapes, KL near {near.min():.3f} to {near.max():.3f}, far {far.min():.3f} to ",
            end="",
        )
        print(f"{far.max():.3f}, Spearman near and far {agreement:.3f}; best {pool.candidates[int(near.argmin())].id}")
        best = int((near + far).argmin())
        behind = (f"{100 * (kls[text][best] / kls[text].min() - 1):.1f} % behind {text}" for text in TEXTS)
        num_on_front = sum(pareto_front(np.stack([near, far], axis=1)))
        print(f"on the front of near and far {num_on_front}; the best by their mean is {' and '.join(behind)}")
        print("| sampler | " + " | ".join(f"after {each}" for each in columns) + " |\n|" + "---|" * (1 + len(columns)))
        for name in samplers:
            if name == TAUGHT and other is None:
                continue
            found = regrets(name, pool, near, most, other)
            cells = []
            for each in columns:
                if each <= 8 * found.shape[1]:
                    regret = found[:, each // 8 - 1]
                    cells.append(f"{100 * regret.mean():.1f} %, {np.count_nonzero(regret <= 0.01)} of {NUM_SEEDS}")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        ends = [ended(pool, near, seed) for seed in range(NUM_SEEDS)]
        num, regret = (np.array(each) for each in zip(*ends, strict=True))
        print(
            f"the default search ends of itself after {num.mean():.1f} evaluations, {100 * regret.mean():.2f} % behind"
        )


def ended(pool: Pool, kls: np.ndarray, seed: int) -> tuple[int, float]:
    """Return after how many evaluations the default search ends, and its regret then."""
    by_id = {candidate.id: float(kl) for candidate, kl in zip(pool.candidates, kls, strict=True)}
    settings = SearchSettings()
    found = explore(
        pool,
        make_sampler(pool, settings, seed),
        settings,
        lambda asked: {each.id: Outcome(each.id, "completed", {"kl_nats": by_id[each.id]}, None, 0) for each in asked},
    )
    return len(found.outcomes), min(found.kls().values()) / float(kls.min()) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("pool", "replay"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--size", default="94M")
    parser.add_argument("--shapes", type=int, default=300)
    parser.add_argument("--teacher")
    parser.add_argument("--measured", type=Path, default=MEASURED)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--most", type=int, default=32)
    args = parser.parse_args()
    if args.part == "replay":
        replay(args.samplers.split(","), args.most, args.measured)
        return
    if args.data is None or args.out is None:
        parser.error("pool needs --data and --out")
    default_display()  # silences the libraries' own bars
    study = Starts(args.data.absolute(), args.out.absolute(), args.measured)
    study.source = args.teacher
    screen_pool(study, parse_count(args.size), args.shapes)


if __name__ == "__main__":
    main()
