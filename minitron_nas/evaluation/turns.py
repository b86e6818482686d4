"""Times taken in turns: one of each model, then again one of each, so that a slow minute hits all of them alike."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Reals: TypeAlias = NDArray[np.float64]

WIDE_SPREAD = 0.1
"""Figures whose spread is wider are measured again, and told as uncertain if they stay so."""

MOST_REPEATS = 3
"""Measured again means: up to this many times the rounds that were asked for."""

Player: TypeAlias = Callable[[], Sequence[float]]
"""Takes all times of one model once, in seconds."""


def spread(values: Reals) -> Reals:
    """Return the interquartile range over the median.

    Args:
        values: (num_rounds, ...).

    Returns:
        (...), infinite where the median is 0.
    """
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(middle == 0, np.inf, (high - low) / np.abs(middle))


def take_turns(players: Sequence[Player], rounds: int, figures: Callable[[Reals], Reals]) -> Reals:
    """Let every model take its times in turns, until the figures that are made of them are steady.

    One round before the first warms up and does not count. After `rounds` rounds there are as many again, up to
    MOST_REPEATS times as many in all, while any figure's spread is above WIDE_SPREAD.

    Args:
        players: The models.
        rounds: How often each is timed at least.
        figures: From times, (num_rounds, num_players, num_times), to the figures of each round, (num_rounds, ...).

    Returns:
        (num_rounds, num_players, num_times), in seconds.
    """
    for play in players:
        play()
    taken: list[list[Sequence[float]]] = []
    while True:
        taken += [[play() for play in players] for _ in range(rounds)]
        times = np.asarray(taken, dtype=np.float64)
        if len(taken) >= MOST_REPEATS * rounds or np.all(spread(figures(times)) <= WIDE_SPREAD):
            return times
