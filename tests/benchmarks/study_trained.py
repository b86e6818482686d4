"""Shapes of a recorded pool trained through the rungs: how untrained KL orders them (E2), and what the rungs are worth.

`python tests/benchmarks/study_trained.py train --data DATA --out OUT --size 94M --shapes 12` trains so many shapes of
SmolLM2-135M with a trial's tokens, each measured untrained in both repairs and at the end of every rung, near and far,
and keeps each as it comes: killed, it goes on. First come the finalists that the default search would choose if it had
screened all of `measured/pools.json`; the others have ranks in it at equal ratios, so that most are among the better.
`python tests/benchmarks/study_trained.py order` needs nothing but `measured/trained.json`: rank correlations with the
KL at the end, and what the default search chooses among the trained shapes, beside all of them trained to the end.
`python tests/benchmarks/study_trained.py decay --data DATA --out OUT --size 94M` trains the same shapes through a whole
schedule that ends with the first rung, into `measured/decayed.json`: whether a rate that has come down orders shapes
better than one that is high (E3), and whether the best by KL also writes best (E6); `order` then tells both.
"""

import argparse
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr
from sklearn.linear_model import Ridge
from study import Measurements
from study_search import MEASURED as POOLS
from study_search import recorded
from study_starts import CALIBRATION, SCORES, Starts

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.loss.losses import Losses
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.evaluation.continuations import NUM_PROMPTS, agreement, continuations
from minitron_nas.execution.runner import Outcome
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.loading import load_for_inference
from minitron_nas.pipeline.display import default_display
from minitron_nas.pruning.refit import refit_in_sequence
from minitron_nas.pruning.settings import RANDOM_TOKENS
from minitron_nas.pruning.student import build_student
from minitron_nas.search.choice import Choice
from minitron_nas.search.contest import Contest
from minitron_nas.search.finalists import choose_finalists
from minitron_nas.search.pool import Pool
from minitron_nas.search.settings import SearchSettings

MEASURED = Path(__file__).parent / "measured" / "trained.json"
DECAYED = Path(__file__).parent / "measured" / "decayed.json"
TEXTS = ("near", "far")
TRIAL_TOKENS = 24_576
RATE = 1e-4
"""The best of three for a student that is repaired in sequence (`measured/starts.json`)."""
FINALISTS = SearchSettings().num_finalists
ENDS = SearchSettings().rung_tokens(50 * TRIAL_TOKENS)
RUNGS = [end for end in ENDS if end]
"""KD tokens at the end of each: a trial gets a fiftieth of a student's."""
WRITTEN = "written"
WAYS = ("one pass", "in sequence")
AXES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
PENALTIES = (0.001, 0.01, 0.1, 1.0)
"""Of the ridge regression of a recovery correction."""


def chosen_shapes(pool: Pool, kls: np.ndarray, num: int) -> list[int]:
    """Return indices into a pool: what the default search would train, then ranks at equal ratios."""
    finalists = choose_finalists(pool, dict(enumerate(kls.tolist())), (), FINALISTS)
    ranked = [index for index in np.argsort(kls).tolist() if index not in finalists]
    places = np.unique(np.geomspace(1, len(ranked), max(num - len(finalists), 1)).round().astype(int)) - 1
    return [*finalists, *(ranked[place] for place in places)][:num]


class Training:
    """One study's way from a shape to its figures."""

    def __init__(self, study: Starts) -> None:
        self._study = study
        self._calibration = study.calibration(CALIBRATION)
        self._prepared = study.prepared(self._calibration, SCORES, RANDOM_TOKENS)
        self._streams = {name: study.stream(study.evaluation(name)) for name in TEXTS}
        study.training(TRIAL_TOKENS)

    def of(self, target: Architecture) -> dict[str, Any]:
        """Train a shape from the better of its starts; every figure is a KL, near also by sequence."""
        found, best = self._begun(target)
        with tempfile.TemporaryDirectory(dir=self._study.out) as work:
            for stop in RUNGS:
                self._study.train(best, RATE, TRIAL_TOKENS, Path(work), stop)
                found[f"{stop}"] = self._measured(best)
        return {**target.sizes(), **found}

    def decayed(self, target: Architecture, start: str) -> dict[str, Any]:
        """Train a shape through a schedule that ends with the first rung; let it write.

        What it writes is told by `WRITTEN`: of each continuation the tokens that are the teacher's.

        Args:
            target: The shape.
            start: The better of its starts, of `WAYS`.
        """
        student = self._started(target, start)
        with tempfile.TemporaryDirectory(dir=self._study.out) as work:
            self._study.train(student, RATE, RUNGS[0], Path(work))
        written = {name: agreement(self._written(student, name), self._teacher[name]) for name in TEXTS}
        return {f"{RUNGS[0]}": self._measured(student), WRITTEN: written}

    @cached_property
    def _teacher(self) -> Mapping[str, list[list[int]]]:
        teacher = load_for_inference(self._study.checkpoint.path)
        return {name: self._written(teacher, name) for name in TEXTS}

    def _written(self, model: CausalLM, name: str) -> list[list[int]]:
        """Continue a text as often as a build does, three times over."""
        tokens = self._study.evaluation(name, 3 * NUM_PROMPTS)
        thirds = torch.arange(3 * NUM_PROMPTS).chunk(3)
        return [own for indices in thirds for own in continuations(model, tokens.sequences(indices))]

    def _begun(self, target: Architecture) -> tuple[dict[str, Any], CausalLM]:
        """Return what the starts of a shape come to, and the better one."""
        found: dict[str, Any] = {}
        best, best_kl = None, float("inf")
        for way in WAYS:
            student = self._started(target, way)
            found[way] = self._measured(student)
            if found[way]["near"] < best_kl:
                best, best_kl = student, found[way]["near"]
        assert best is not None
        return found, best

    def _started(self, target: Architecture, way: str) -> CausalLM:
        if way == WAYS[0]:
            return build_student(self._prepared, target, torch.float32)
        with tempfile.TemporaryDirectory(dir=self._study.out) as work:
            repaired = refit_in_sequence(self._prepared, target, self._calibration, Path(work))
            return build_student(self._prepared, target, torch.float32, repaired)

    def _measured(self, model: CausalLM) -> dict[str, Any]:
        losses: Mapping[str, Losses] = {
            name: validate(model, stream.tokens, stream.signal) for name, stream in self._streams.items()
        }
        figures: dict[str, Any] = {name: round(each.kl_nats, 5) for name, each in losses.items()}
        return {**figures, "sequences": [round(each, 3) for each in losses["near"].sequence_kl_nats]}


def train(study: Starts, size: str, num: int) -> None:
    """Train shapes of a size that are not trained yet."""
    pool, kls = recorded(size, Measurements(POOLS).all())
    training = Training(study)
    for index in chosen_shapes(pool, kls["near"], num):
        shape = pool.candidates[index].architecture
        study.measurements.once(f"{size} | {shape.id}", lambda shape=shape: training.of(shape))


def decay(study: Starts, size: str) -> None:
    """Train the shapes of a size that were trained through the rungs, where that was not done yet."""
    pool, kls = recorded(size, Measurements(POOLS).all())
    rows, training = Measurements(MEASURED).all(), Training(study)
    for index in np.argsort(kls["near"]).tolist():
        key, shape = key_of(size, pool, index), pool.candidates[index].architecture
        if key in rows:
            start = min(WAYS, key=lambda way, row=rows[key]: row[way]["near"])
            study.measurements.once(key, lambda shape=shape, start=start: training.decayed(shape, start))


def order(size: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print how each stage orders the trained shapes, and what the search would have chosen among them."""
    ids = [key.partition(" | ")[2] for key in rows]
    table = list(rows.values())
    ends = [f"{rung}" for rung in RUNGS]
    final = {text: np.array([row[ends[-1]][text] for row in table]) for text in TEXTS}
    best = int(final["near"].argmin())
    print(
        f"\n{size}: {len(table)} shapes, KL after {RUNGS[-1]:,} tokens {final['near'].min():.3f} to "
        f"{final['near'].max():.3f}; best {ids[best]}; Spearman near and far at the end "
        f"{spearmanr(final['near'], final['far']).statistic:.2f}"
    )
    stages = {f"untrained, {way}": [row[way] for row in table] for way in WAYS}
    stages["untrained, the better"] = [standing(row, 0) for row in table]
    stages |= {f"after {int(end):,} tokens": [row[end] for row in table] for end in ends[:-1]}
    known = Measurements(DECAYED).all()
    decayed = [known[key] for key in rows] if rows.keys() <= known.keys() else []
    if decayed:
        stages[f"after {RUNGS[0]:,} tokens, decayed"] = [row[ends[0]] for row in decayed]
    print("| ordered by KL | rho near | tau near | rho far | best at the end has rank | its best is behind |")
    print("|---|---|---|---|---|---|")
    for name, figures in stages.items():
        kls = {text: np.array([each[text] for each in figures]) for text in TEXTS}
        rho = {text: spearmanr(kls[text], final[text]).statistic for text in TEXTS}
        behind = final["near"][kls["near"].argmin()] / final["near"].min() - 1
        rank = 1 + np.count_nonzero(kls["near"] < kls["near"][best])
        tau = kendalltau(kls["near"], final["near"]).statistic
        print(f"| {name} | {rho['near']:.2f} | {tau:.2f} | {rho['far']:.2f} | {rank} | {100 * behind:.1f} % |")
    if decayed:
        show_written(decayed, ids)
    in_sequence = sum(row[WAYS[1]]["near"] < row[WAYS[0]]["near"] for row in table)
    print(f"{in_sequence} of {len(table)} begin better repaired in sequence")
    winner, tokens = contested(size, rows)
    behind = rows[f"{size} | {winner}"][ends[-1]]["near"] / final["near"].min() - 1
    everything = len(table) * RUNGS[-1]
    print(
        f"The default search chooses {winner}, {100 * behind:.2f} % behind the best, for {tokens:,} KD tokens; all "
        f"trained to the end cost {everything:,}, {everything / tokens:.1f} times as many"
    )


def correct(teaching: Mapping[str, Mapping[str, Any]], size: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what a recovery correction is worth that another size teaches: log(KL at the end / untrained) by log sizes.

    Args:
        teaching: Shapes of the other size.
        size: The size whose untrained KL is corrected.
        rows: Its shapes.
    """
    (taught, gained, _), (places, own, ends) = (recoveries(table.values()) for table in (teaching, rows))
    for start, columns in {"in one pass": 0, "by the better repair": 1}.items():
        kls = [standing(row, 0)["near"] if columns else row[WAYS[0]]["near"] for row in rows.values()]
        cells = [f"{spearmanr(kls, ends).statistic:.2f} as it is"]
        for penalty in PENALTIES:
            model = Ridge(alpha=penalty).fit(taught, gained[:, columns])
            rho = spearmanr(np.log(kls) + model.predict(places), ends).statistic
            cells.append(f"{rho:.2f} corrected, penalty {penalty:g}")
        print(f"{size}, Spearman of untrained KL {start} with KL at the end: {', '.join(cells)}")
    print(f"{size}: log(KL at the end / by the better repair) has a standard deviation of {own[:, 1].std():.3f}")


def recoveries(rows: Iterable[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log sizes, what training has gained on one pass and on the better repair, and KL at the end."""
    table = list(rows)
    ends = np.array([row[f"{RUNGS[-1]}"]["near"] for row in table])
    begun = np.array([(row[WAYS[0]]["near"], standing(row, 0)["near"]) for row in table])
    return np.log([[row[name] for name in AXES] for row in table]), np.log(ends[:, None] / begun), ends


def show_written(rows: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> None:
    """Print how KL orders what shapes write after the first rung, and who writes best."""
    for text in TEXTS:
        kls = np.array([row[f"{RUNGS[0]}"][text] for row in rows])
        written = np.array([row[WRITTEN][text] for row in rows])
        means, by_kl = written.mean(axis=1), int(kls.argmin())
        best = int(means.argmax())
        lead = written[best] - written[by_kl]
        error = lead.std(ddof=1) / np.sqrt(len(lead))
        print(
            f"{text}: Spearman of KL and of tokens written as the teacher does {-spearmanr(kls, means).statistic:.2f}; "
            f"best by KL {ids[by_kl]} writes {means[by_kl]:.2f}, best writer {ids[best]} (rank "
            f"{1 + np.count_nonzero(kls < kls[best])} by KL) {means[best]:.2f}, {lead.mean():.2f} +- {error:.2f} more"
        )


def contested(size: str, rows: Mapping[str, Mapping[str, Any]]) -> tuple[str, int]:
    """Return whom the default search chooses among the trained shapes, and how many KD tokens it takes for it."""
    pool, kls = recorded(size, Measurements(POOLS).all())
    known = {index: kl for index, kl in enumerate(kls["near"].tolist()) if key_of(size, pool, index) in rows}
    finalists = [pool.candidates[index] for index in choose_finalists(pool, known, (), FINALISTS)]
    contest, tokens, previous = Contest(finalists, ENDS, SearchSettings().reduction, Choice()), 0, 0
    while not contest.is_over:
        end = ENDS[contest.place]
        tokens, previous = tokens + len(contest.alive) * (end - previous), end
        reached = {each.id: standing(rows[f"{size} | {each.id}"], end) for each in contest.alive}
        contest.end_rung({key: Outcome(key, "completed", told(figures), None, 0) for key, figures in reached.items()})
    return contest.alive[0].id, tokens


def standing(row: Mapping[str, Any], end: int) -> Mapping[str, Any]:
    """Return what a shape comes to in so many tokens; without any, the better of its starts."""
    return row[f"{end}"] if end else min((row[way] for way in WAYS), key=lambda each: each["near"])


def told(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {"kl_nats": figures["near"], "sequence_kl_nats": figures["sequences"]}


def key_of(size: str, pool: Pool, index: int) -> str:
    return f"{size} | {pool.candidates[index].architecture.id}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "decay", "order"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--size", default="94M")
    parser.add_argument("--shapes", type=int, default=12)
    args = parser.parse_args()
    if args.part == "order":
        rows = Measurements(MEASURED).all()
        names = dict.fromkeys(key.partition(" | ")[0] for key in rows)
        sizes = {name: {key: row for key, row in rows.items() if key.startswith(f"{name} | ")} for name in names}
        for size, own in sizes.items():
            order(size, own)
        for (_, own), (size, others) in permutations(sizes.items(), 2):
            correct(own, size, others)
        return
    if args.data is None or args.out is None:
        parser.error(f"{args.part} needs --data and --out")
    default_display()  # silences the libraries' own bars
    data, out = args.data.absolute(), args.out.absolute()
    if args.part == "train":
        train(Starts(data, out, MEASURED), args.size, args.shapes)
    else:
        decay(Starts(data, out, DECAYED), args.size)


if __name__ == "__main__":
    main()
