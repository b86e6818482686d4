"""The three ways from a criterion of depth pruning to the layers that a model of every depth keeps.

All give a table: (num_hidden_layers, num_hidden_layers), bool; row n - 1 says which layers a model of
n layers keeps, and keeps none where that was not measured. Of equal scores the later layers leave first.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import inf

import torch
from torch import Tensor

from minitron_nas.errors import InvalidArchitectureError
from minitron_nas.importance.depth import Criterion
from minitron_nas.progress import Progress, silent


def layer_table(kept: Mapping[int, Iterable[int]], num_layers: int) -> Tensor:
    """Return the table in which models of some depths keep the layers that are named, and the whole model all.

    Args:
        kept: Layers by the number of them; that number of indices each.
        num_layers: Of the source.
    """
    table = torch.zeros(num_layers, num_layers, dtype=torch.bool)
    for layers in (*kept.values(), range(num_layers)):
        indices = list(layers)
        table[len(indices) - 1, indices] = True
    return table


def ranked_layers(importance: Sequence[float], protected: Collection[int]) -> Tensor:
    """Return the table of a ranking: a model of n layers keeps the n most important, protected ones first.

    Args:
        importance: (num_hidden_layers,), higher stays longer.
        protected: Indices of layers that leave last.
    """
    layers = range(len(importance))
    ranking = sorted(layers, key=lambda layer: (layer not in protected, -importance[layer]))
    return layer_table({count: ranking[:count] for count in range(1, len(ranking))}, len(ranking))


def layers_alone(
    criterion: Criterion, num_layers: int, protected: Collection[int], progress: Progress = silent
) -> Tensor:
    """Score each layer by what is lost when it alone leaves, and rank them.

    Args:
        criterion: Scores a layer by what is lost when it leaves.
        num_layers: Of the source.
        protected: Indices of layers that leave last.
        progress: Told the layers measured.
    """
    free = [layer for layer in range(num_layers) if layer not in protected]
    scores = _scored(criterion, frozenset(), _single(free), progress, 0, len(free))
    importance = dict(zip(free, scores, strict=True))
    return ranked_layers([importance.get(layer, inf) for layer in range(num_layers)], protected)


def best_blocks(
    criterion: Criterion,
    num_layers: int,
    protected: Collection[int],
    counts: Collection[int],
    progress: Progress = silent,
) -> Tensor:
    """For each number of layers to keep, take out the contiguous run of layers whose loss costs least.

    Args:
        criterion: Scores a run by what is lost when all of it leaves.
        num_layers: Of the source.
        protected: Indices of layers that stay.
        counts: How many layers models keep, below `num_layers`.
        progress: Told the runs measured.

    Raises:
        InvalidArchitectureError: If no run of the length that has to leave is free of protected layers.

    Source: Sreenivas et al. 2024 (arXiv 2408.11796), depth pruning; the best of all starts.
    """
    runs = {count: free_runs(num_layers, protected, num_layers - count) for count in sorted(counts, reverse=True)}
    every = [run for candidates in runs.values() for run in candidates]
    scores = dict(zip(every, _scored(criterion, frozenset(), every, progress, 0, len(every)), strict=True))
    kept = {}
    for count, candidates in runs.items():
        best = min(reversed(candidates), key=lambda run: scores[run])
        kept[count] = [layer for layer in range(num_layers) if layer not in best]
    return layer_table(kept, num_layers)


def greedy_layers(
    criterion: Criterion,
    num_layers: int,
    protected: Collection[int],
    fewest: int,
    progress: Progress = silent,
) -> Tensor:
    """Take out the layer whose loss costs least, score those that are left again without it, and so on.

    Args:
        criterion: Scores a layer by what is lost when it leaves too.
        num_layers: Of the source.
        protected: Indices of layers that stay.
        fewest: How many layers are left at the end.
        progress: Told the layers measured.

    Source: NVIDIA 2025, Nemotron Elastic (arXiv 2511.16664), iterative layer removal.
    """
    free = [layer for layer in range(num_layers) if layer not in protected]
    num_steps = num_layers - fewest
    total = sum(len(free) - step for step in range(num_steps))
    removed: frozenset[int] = frozenset()
    kept, done = {}, 0
    for _ in range(num_steps):
        candidates = [layer for layer in free if layer not in removed]
        scores = list(_scored(criterion, removed, _single(candidates), progress, done, total))
        done += len(candidates)
        best = min(reversed(range(len(candidates))), key=scores.__getitem__)
        removed |= {candidates[best]}
        kept[num_layers - len(removed)] = [layer for layer in range(num_layers) if layer not in removed]
    return layer_table(kept, num_layers)


def _single(layers: Iterable[int]) -> list[range]:
    return [range(layer, layer + 1) for layer in layers]


def free_runs(num_layers: int, protected: Collection[int], length: int) -> list[range]:
    """Return all runs of so many layers that hold no protected one, the earliest first.

    Args:
        num_layers: Of the source.
        protected: Indices of layers that stay.
        length: Of a run.

    Raises:
        InvalidArchitectureError: If there are none.
    """
    runs = [range(start, start + length) for start in range(num_layers - length + 1)]
    free = [run for run in runs if not any(layer in run for layer in protected)]
    if not free:
        raise InvalidArchitectureError(
            f"no {length} layers in a row are free of the protected layers {sorted(protected)} of {num_layers}; keep "
            "more layers, protect fewer, or choose importance.depth.mode=layers or greedy"
        )
    return free


def _scored(
    criterion: Criterion, removed: frozenset[int], runs: Sequence[range], progress: Progress, done: int, total: int
) -> Iterator[float]:
    for number, score in enumerate(criterion(removed, runs), start=done + 1):
        progress(number, total)
        yield score
