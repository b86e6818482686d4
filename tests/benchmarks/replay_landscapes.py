"""What the replay searches: pools of shapes, the untrained KL of each, and how each would recover under distillation.

Untrained, with u_a = log(source's size / shape's size) along axis a, the KL of a synthetic pool is

    KL(0) = (sum_a b_a u_a + sum_{a <= b} b_ab u_a u_b) exp(rough(u)),

additive and pairwise terms, fitted to what is recorded, none where nothing is cut, and a Gaussian random field with
short lengths in place of what they do not explain. Of a recorded pool it is what was measured. Trained for t trials'
worth of tokens (one trial is T),

    KL(t) = floor + (KL(0) - floor) (1 + t / tau)^-alpha,

the power law with an asymptote: pow4 in Domhan, Springenberg and Hutter 2015 (IJCAI, table 1) for learning curves,
Hestness et al. 2017 (arXiv 1712.00409) for loss against data. tau, alpha and where floors lie are fitted to recorded
curves of students of SmolLM2. Which shape has which floor is not known: the logarithms of floors spread as those of
starts do, and floors follow an order that agrees with that of starts as far as is asked for.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import combinations_with_replacement
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from minitron_nas.architecture.spec import Architecture
from minitron_nas.execution.runner import Outcome
from minitron_nas.families.catalog import layout_of
from minitron_nas.search.costing import Costing, Deployment, Values
from minitron_nas.search.exploration import Exploration, explore, make_sampler
from minitron_nas.search.pool import Pool
from minitron_nas.search.proposals import scaled
from minitron_nas.search.settings import SearchSettings
from minitron_nas.space.axes import SearchSpace, load_space
from minitron_nas.space.enumerate import Candidate, enumerate_candidates

MEASURED = Path(__file__).parent / "measured"
AXES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
COEFFICIENTS = (
    *(3.39, 5.45, 1.95, 0.71, 0.26),
    *(0.47, 0.47, 0.27, -0.17, 0.0, 1.08, -2.52, 0.53, 0.55, -0.74, 0.32, -0.16, -0.07, -0.08, 0.1),
)
"""Of `terms`, axes in the order of `AXES`: by `replay_fit.py` from twelve shapes of a pool at 94M and
five others, each of which the rest predict to 8 %, those of the pool to 5 %."""
ROUGHNESS = 0.05
"""Standard deviation of the log of KL that they do not explain."""
FEWEST_SHAPES = 100
"""A recorded pool with fewer is no search."""

LLAMA_8B = Architecture("llama", 32, 4096, 14336, 32, 8, 128, 128256)
FINE = SearchSpace.model_validate(
    {
        "axes": {
            "num_hidden_layers": {"values": list(range(20, 33))},
            "hidden_size": {"min_fraction": 0.5, "step_fraction": 1 / 128},
            "intermediate_size": {"min_fraction": 0.375, "step_fraction": 1 / 448, "multiple_of": 8},
            "num_attention_heads": {"values": [16, 20, 24, 28, 32]},
            "num_key_value_heads": {"values": [4, 6, 8]},
        }
    }
)


@dataclass(frozen=True)
class Recovery:
    """How shapes recover.

    Attributes:
        floor: Median floor as a share of the median start.
        tau: Trials' worth of tokens after which the power law bends, median over shapes.
        alpha: Its exponent.
        taus: Standard deviation over shapes of the log of tau; assumed.
        kinds: Share of the variance of what starts do not tell about floors that shapes of one kind have in common:
            layers dropped or not, channels cut or not, heads or groups cut or not; assumed.
    """

    floor: float
    tau: float
    alpha: float = 1.0
    taus: float = 0.5
    kinds: float = 0.5


RECOVERIES = {"short trials": Recovery(0.755, 0.25), "long trials": Recovery(0.2, 0.05)}
"""Fitted to what is recorded, where a trial of 102,400 tokens takes a fifth of the KL away; and assumed, five times as
long and down to a lower floor, which takes three quarters away."""


@dataclass(frozen=True)
class Noise:
    """What a validation's KL is off by: each sequence is as hard as it is, and harder for some shapes than for others.

    Attributes:
        num_sequences: Validated on, the same for all.
        shared: Standard deviation over sequences of the log of what they have in common.
        own: Standard deviation over sequences of what a shape adds, as a share of its KL.
    """

    num_sequences: int = 64
    shared: float = 0.3
    own: float = 0.03

    def factors(self, seed: int, index: int) -> Values:
        """Return what the KL of each sequence is as a share of the shape's true KL, the same at every look.

        Args:
            seed: Of the landscape.
            index: Of the shape.
        """
        hardness = np.exp(self.shared * np.random.default_rng((seed, 1)).standard_normal(self.num_sequences))
        own = np.random.default_rng((seed, 2, index)).standard_normal(self.num_sequences)
        factors: Values = hardness / hardness.mean() + self.own * own
        return factors


@dataclass(frozen=True)
class Surface:
    """A pool whose untrained KL is known everywhere.

    Attributes:
        pool: The shapes.
        places: Index of each candidate id.
        starts: (num_shapes,), true untrained KL.
        seed: Of the noise, of what is not recorded, and of the search.
        noise: Of validations.
    """

    pool: Pool
    places: Mapping[str, int]
    starts: Values
    seed: int
    noise: Noise = Noise()
    _explored: dict[str, Exploration] = field(default_factory=dict, repr=False)
    _factors: dict[int, Values] = field(default_factory=dict, repr=False)

    @cached_property
    def costs(self) -> Values:
        """Seconds of a whole trial of each shape, by its FLOPs; their mean is one."""
        flops = self.pool.columns["forward_flops_per_token"].astype(float)
        costs: Values = flops / flops.mean()
        return costs

    @cached_property
    def kinds(self) -> NDArray[np.int_]:
        """Of which kind each shape is, as a number: layers dropped, channels cut, heads or groups cut."""
        gone = cuts(self.pool.source, self.pool.columns) > 0
        kinds: NDArray[np.int_] = 4 * gone[:, 0] + 2 * gone[:, 1] + gone[:, 3:].any(axis=1)
        return kinds

    def measured(self, index: int, kl: float, key: str) -> Outcome:
        """Return what a validation says of a shape whose true KL is given."""
        if index not in self._factors:
            self._factors[index] = self.noise.factors(self.seed, index)
        sequences = kl * self._factors[index]
        value = {"kl_nats": float(sequences.mean()), "sequence_kl_nats": sequences.tolist()}
        return Outcome(key, "completed", value, None, 0.0)

    def explored(self, settings: SearchSettings) -> Exploration:
        """Explore with the product's own code; once for all settings that differ in what comes after it.

        Args:
            settings: Say how.
        """
        deciding = settings.model_dump_json(include={"sampler", "objectives", "max_screened", "round_size"})
        if deciding not in self._explored:
            sampler = make_sampler(self.pool, settings, self.seed)
            self._explored[deciding] = explore(self.pool, sampler, settings, self._screened)
        return self._explored[deciding]

    def _screened(self, candidates: Sequence[Candidate]) -> dict[str, Outcome]:
        indices = {candidate.id: self.places[candidate.id] for candidate in candidates}
        return {key: self.measured(index, float(self.starts[index]), key) for key, index in indices.items()}


@dataclass(frozen=True)
class Landscape:
    """A surface, and where each of its shapes ends.

    Attributes:
        surface: Before any training.
        floors: (num_shapes,), KL after endless training.
        taus: (num_shapes,), trials' worth of tokens after which the power law bends.
        alpha: Its exponent.
    """

    surface: Surface
    floors: Values
    taus: Values
    alpha: float
    _kls: dict[float, Values] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, surface: Surface, correlation: float, recovery: Recovery) -> "Landscape":
        """Draw floors, whose logarithms spread as those of starts do, and which starts rank to a given degree.

        No floor is above 0.98 of its start: training does not harm. Where floors lie high, or what kinds have in common
        happens to follow the starts, a low correlation may be out of reach; then the lowest is taken.

        Args:
            surface: Before any training.
            correlation: Spearman's, of starts and floors over the pool.
            recovery: How shapes recover.
        """
        logs = np.log(surface.starts)
        untold = _untold(surface, recovery.kinds)
        low, high = 0.0, 1.0
        for _ in range(12):
            share = (low + high) / 2
            mixed = share * (logs - logs.mean()) + (1 - share**2) ** 0.5 * logs.std() * untold
            floors = np.minimum(recovery.floor * np.exp(np.median(logs) + mixed), 0.98 * surface.starts)
            reached = spearmanr(surface.starts, floors).statistic
            low, high = (share, high) if reached < correlation else (low, share)
        drawn = np.random.default_rng((surface.seed, 6)).standard_normal(len(logs))
        return cls(surface, floors, recovery.tau * np.exp(recovery.taus * drawn), recovery.alpha)

    def kls(self, tokens: float) -> Values:
        """Return the true KL of every shape after some trials' worth of tokens."""
        left = (1 + tokens / self.taus) ** -self.alpha
        kls: Values = self.floors + (self.surface.starts - self.floors) * left
        return kls

    @cached_property
    def finals(self) -> Values:
        """KL of every shape after one trial."""
        return self.kls(1.0)

    def measured(self, index: int, tokens: float, key: str = "") -> Outcome:
        """Return what a validation says of a shape after some trials' worth of tokens."""
        if tokens not in self._kls:
            self._kls[tokens] = self.kls(tokens)
        return self.surface.measured(index, float(self._kls[tokens][index]), key)

    def regret(self, index: int) -> float:
        """Return by what share of the least KL after one trial a shape's is above it."""
        return float(self.finals[index] / self.finals.min()) - 1


def places_in(pool: Pool) -> Mapping[str, int]:
    """Return the index of each candidate id."""
    return {candidate.id: index for index, candidate in enumerate(pool.candidates)}


@cache
def pool_of(name: str) -> tuple[Pool, Mapping[str, int]]:
    """Return a pool by the name that tables give it, and the index of each candidate id.

    Args:
        name: `94M` of SmolLM2, `8B to 4B`, both of the space `default`, or `8B to 4B fine` of smaller steps.
    """
    space = FINE if name.endswith("fine") else load_space("default")
    source = load_space("smollm2-135m").source_architecture() if name == "94M" else LLAMA_8B
    size = 94_000_000 if name == "94M" else 4_000_000_000
    layout = layout_of(source.model_type)
    found = enumerate_candidates(space, size, source, layout)
    pool = Pool.of(found, Costing(source, layout, 1024, Deployment(1, 4096)))
    return pool, places_in(pool)


def synthetic(name: str, seed: int) -> Surface:
    """Return a surface of fitted terms over a pool, with a roughness of its own for each seed."""
    pool, places = pool_of(name)
    random = np.random.default_rng((seed, 0))
    smooth = np.maximum(terms(cuts(pool.source, pool.columns)) @ np.array(COEFFICIENTS), 0.05)
    return Surface(pool, places, smooth * np.exp(ROUGHNESS * _field(scaled(pool), 0.15, random)), seed)


def cuts(source: Architecture, columns: Mapping[str, NDArray[Any]]) -> Values:
    """Return the log of what share of each axis is left, negated; (num_shapes, num_axes)."""
    return np.stack([np.log(getattr(source, axis) / columns[axis].astype(float)) for axis in AXES], axis=1)


def terms(cut: Values) -> Values:
    """Return each cut, and each product of two, (num_shapes, num_terms)."""
    return np.column_stack([cut, *(one * other for one, other in combinations_with_replacement(cut.T, 2))])


def read_measured(name: str) -> dict[str, dict[str, Any]]:
    """Return a file of `measured/`; empty where there is none."""
    path = MEASURED / f"{name}.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _untold(surface: Surface, share: float) -> Values:
    """Return what floors have that starts do not tell: mean zero, variance one, a share of it by kinds."""
    random = np.random.default_rng((surface.seed, 3))
    by_kind = _standard(random.standard_normal(8)[surface.kinds])
    own = _field(scaled(surface.pool), 0.15, random)
    return _standard(share**0.5 * by_kind + (1 - share) ** 0.5 * own)


def _field(features: Values, length: float, random: np.random.Generator) -> Values:
    """Return a draw of a Gaussian random field at some points, by 64 random waves (Rahimi and Recht 2007)."""
    waves = random.standard_normal((features.shape[1], 64)) / length
    drawn = np.cos(features @ waves + random.uniform(0, 2 * pi, 64)) @ random.standard_normal(64)
    return _standard(drawn)


def _standard(values: Values) -> Values:
    scaled_values: Values = (values - values.mean()) / max(float(values.std()), 1e-12)
    return scaled_values
