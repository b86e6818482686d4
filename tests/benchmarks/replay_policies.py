"""Searches over a simulated landscape on simulated workers: the product's own, and those that it is compared with.

The product's is put together from its own code: `explore`, `choose_finalists`, `Contest`. The others are written here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

import numpy as np
from replay_landscapes import Landscape

from minitron_nas.search.choice import Choice
from minitron_nas.search.contest import Contest
from minitron_nas.search.finalists import choose_finalists
from minitron_nas.search.rungs import Standing
from minitron_nas.search.settings import SearchSettings

TRIAL_TOKENS = 1_000_000
"""KD tokens of one trial, T, where the product wants a whole number."""


@dataclass(frozen=True)
class Work:
    """What keeps one worker busy.

    Attributes:
        index: Of the shape.
        tokens: KD tokens, in trials' worth.
        seconds: In units of the mean trial's.
        end: How far the shape is trained afterwards, in trials' worth.
    """

    index: int
    tokens: float
    seconds: float
    end: float


class Workers:
    """Simulated workers and what they have spent; each takes one piece of work at a time.

    Attributes:
        seconds: On the clock, in units of the mean trial's.
        tokens: KD tokens spent, in trials' worth.
    """

    def __init__(self, num: int, screening: float, jitter: float, seed: int) -> None:
        """Start the clock.

        Args:
            num: Workers.
            screening: Seconds of one screening, in units of the mean trial's.
            jitter: Standard deviation of the log of what a piece of work takes longer than it should.
            seed: Of the jitter, which depends on the work and not on who does it.
        """
        self.seconds = self.tokens = 0.0
        self._num, self._screening, self._jitter, self._seed = num, screening, jitter, seed

    def run(self, ask: Callable[[], Work | None], tell: Callable[[Work], None] = lambda _: None) -> None:
        """Do what is asked for until there is nothing more: whenever a worker is free, the next piece.

        Args:
            ask: Returns the next piece, None if there is none until something ends.
            tell: Told when a piece has ended.
        """
        running: list[tuple[float, int, Work]] = []
        number = 0
        while True:
            while len(running) < self._num and (work := ask()) is not None:
                number += 1
                self.tokens += work.tokens
                heappush(running, (self.seconds + work.seconds, number, work))
            if not running:
                return
            self.seconds, _, ended = heappop(running)
            tell(ended)

    def run_all(self, pieces: Iterable[Work]) -> None:
        """Do some pieces in their order, and wait for all."""
        left = iter(pieces)
        self.run(lambda: next(left, None))

    def screening(self, index: int) -> Work:
        """Return the work of screening a shape."""
        return Work(index, 0.0, self._screening * self._slower(index, 0.0), 0.0)

    def training(self, landscape: Landscape, index: int, begin: float, end: float) -> Work:
        """Return the work of training a shape further.

        Args:
            landscape: Says what it costs.
            index: Of the shape.
            begin: How far it is trained already, in trials' worth.
            end: How far it will be.
        """
        seconds = (end - begin) * float(landscape.surface.costs[index]) * self._slower(index, end)
        return Work(index, end - begin, seconds, end)

    def _slower(self, index: int, end: float) -> float:
        random = np.random.default_rng((self._seed, 4, index, round(end * TRIAL_TOKENS)))
        return float(np.exp(self._jitter * random.standard_normal())) if self._jitter else 1.0


class Policy(Protocol):
    """Searches a landscape."""

    def __call__(self, landscape: Landscape, workers: Workers) -> int:
        """Return the index of the shape that is chosen."""


@dataclass(frozen=True)
class Product:
    """The product's search, and with other settings those that `search: NAME` stands for.

    Attributes:
        settings: As in a plan.
        told: What rung 0 says of a finalist: its KL after so many trials' worth of tokens, for a better repair than the
            screening's; None for a search without that rung.
    """

    settings: SearchSettings
    told: float | None = 0.0

    def __call__(self, landscape: Landscape, workers: Workers) -> int:
        """Explore, choose finalists, hold the contest."""
        surface, settings = landscape.surface, self.settings
        explored = surface.explored(settings)
        for number in dict.fromkeys(explored.rounds.values()):
            asked = [index for index, each in explored.rounds.items() if each == number]
            workers.run_all(map(workers.screening, asked))
        kls = explored.kls()
        finalists = choose_finalists(surface.pool, kls, settings.others, settings.num_finalists)
        candidates = {index: surface.pool.candidates[index] for index in finalists}
        by_id = {candidate.id: index for index, candidate in candidates.items()}
        rungs = [end for end in settings.rung_tokens(50 * TRIAL_TOKENS) if end or self.told is not None]
        if not rungs:
            standings = [Standing(candidate.id, kls[index], ()) for index, candidate in candidates.items()]
            return by_id[Choice().members(standings)[0]]
        contest, begin = Contest(list(candidates.values()), rungs, settings.reduction, Choice()), 0.0
        while not contest.is_over:
            end = rungs[contest.place] / TRIAL_TOKENS
            alive = [by_id[candidate.id] for candidate in contest.alive]
            workers.run_all([workers.training(landscape, index, begin, end) for index in alive])
            contest.end_rung({candidates[each].id: landscape.measured(each, end or self.told or 0.0) for each in alive})
            begin = end
        return by_id[contest.alive[0].id]


@dataclass(frozen=True)
class SuccessiveHalving:
    """Shapes drawn at random, of which one in so many goes on from each rung.

    Source: Karnin, Koren and Somekh 2013 (ICML); Jamieson and Talwalkar 2016 (arXiv 1502.07943), with `reduction`
    for two.

    Attributes:
        num: Shapes of the first rung.
        num_rungs: Of which the last ends after one trial's worth of tokens.
        reduction: One in this many, rounded down, goes on, and at least one; each rung ends after so many times the
            tokens of the one before.
    """

    num: int
    num_rungs: int
    reduction: int

    def __call__(self, landscape: Landscape, workers: Workers) -> int:
        """Halve."""
        alive, begin = drawn(landscape, self.num), 0.0
        for end in ends(self.num_rungs, self.reduction):
            workers.run_all([workers.training(landscape, index, begin, end) for index in alive])
            ranked = sorted(alive, key=lambda index: told(landscape, index, end))
            alive, begin = ranked[: max(len(ranked) // self.reduction, 1)], end
        return alive[0]


@dataclass(frozen=True)
class Asha:
    """The same without waiting: whenever a worker is free, what is promotable is promoted, else another is begun.

    Source: Li et al. 2020 (arXiv 1810.05934), algorithm 2, with a number of shapes after which none is begun any more;
    what is promotable is trained on until nothing is.

    Attributes:
        num: Shapes that are begun.
        num_rungs: Of which the last ends after one trial's worth of tokens.
        reduction: Of those that have ended a rung, one in this many, rounded down, may go on.
    """

    num: int
    num_rungs: int
    reduction: int

    def __call__(self, landscape: Landscape, workers: Workers) -> int:
        """Promote as results arrive."""
        rungs = Rungs(drawn(landscape, self.num), ends(self.num_rungs, self.reduction), self.reduction)

        def ask() -> Work | None:
            step = rungs.next()
            return None if step is None else workers.training(landscape, *step)

        workers.run(ask, lambda work: rungs.end(work.index, work.end, told(landscape, work.index, work.end)))
        return rungs.best()


class Rungs:
    """What ASHA knows: who has ended which rung with what KL, and who was promoted from it."""

    def __init__(self, waiting: Sequence[int], ends: Sequence[float], reduction: int) -> None:
        """Begin with nobody at work.

        Args:
            waiting: Shapes in the order in which they are begun.
            ends: Tokens at the end of each rung, in trials' worth.
            reduction: One in this many goes on.
        """
        self._waiting, self._ends, self._reduction = list(waiting), list(ends), reduction
        self._kls: list[dict[int, float]] = [{} for _ in ends]
        self._promoted: list[set[int]] = [set() for _ in ends]

    def next(self) -> tuple[int, float, float] | None:
        """Return who trains next, from and to how many tokens: a promotion from the highest rung that has one."""
        for rung in reversed(range(len(self._ends) - 1)):
            ended = self._kls[rung]
            best = sorted(ended, key=lambda index: ended[index])[: len(ended) // self._reduction]
            for index in best:
                if index not in self._promoted[rung]:
                    self._promoted[rung].add(index)
                    return index, self._ends[rung], self._ends[rung + 1]
        return (self._waiting.pop(0), 0.0, self._ends[0]) if self._waiting else None

    def end(self, index: int, end: float, kl: float) -> None:
        """Take note of a shape's KL at the end of a rung.

        Args:
            index: Of the shape.
            end: The rung's tokens, in trials' worth.
            kl: What was measured.
        """
        self._kls[self._ends.index(end)][index] = kl

    def best(self) -> int:
        """Return the best of the highest rung that anybody has ended."""
        highest = next(kls for kls in reversed(self._kls) if kls)
        return min(highest, key=lambda index: highest[index])


def drawn(landscape: Landscape, num: int) -> list[int]:
    """Return shapes drawn at random, in the order of the draw; the same ones for all policies of a seed."""
    surface = landscape.surface
    order: list[int] = np.random.default_rng((surface.seed, 5)).permutation(len(surface.pool))[:num].tolist()
    return order


def ends(num_rungs: int, reduction: int) -> list[float]:
    """Return the tokens at the end of each rung, in trials' worth."""
    return [float(reduction) ** -step for step in reversed(range(num_rungs))]


def told(landscape: Landscape, index: int, tokens: float) -> float:
    """Return what a validation says of a shape."""
    kl = landscape.measured(index, tokens).number("kl_nats")
    assert kl is not None
    return kl
