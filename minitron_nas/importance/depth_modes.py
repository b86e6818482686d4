"""The three ways from a criterion of depth pruning to the layers that a model of every depth keeps.

All give a table: (num_hidden_layers, num_hidden_layers), bool; row n - 1 says which layers a model of
n layers keeps, and keeps none where that was not measured. Of equal scores the later layers leave first.
Where layers are of several kinds, the number of layers says how many of each kind are kept.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import inf

import torch
from torch import Tensor

from minitron_nas.architecture.kinds import best_of_each_kind, gives, kept_of_each_kind
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


def ranked_layers(importance: Sequence[float], protected: Collection[int], kinds: Sequence[str] = ()) -> Tensor:
    """Return the table of a ranking: a model of n layers keeps the n most important, protected ones first.

    Args:
        importance: (num_hidden_layers,), higher stays longer.
        protected: Indices of layers that leave last.
        kinds: Of the layers, each of which is ranked among those of its kind; none where all are alike.
    """
    num_layers = len(importance)
    ranking = sorted(range(num_layers), key=lambda layer: (layer not in protected, -importance[layer]))
    own = kinds or ("",) * num_layers
    return layer_table({count: best_of_each_kind(own, ranking, count) for count in range(1, num_layers)}, num_layers)


def layers_alone(
    criterion: Criterion,
    num_layers: int,
    protected: Collection[int],
    progress: Progress = silent,
    kinds: Sequence[str] = (),
) -> Tensor:
    """Score each layer by what is lost when it alone leaves, and rank them.

    Args:
        criterion: Scores a layer by what is lost when it leaves.
        num_layers: Of the source.
        protected: Indices of layers that leave last.
        progress: Told the layers measured.
        kinds: Of the layers; none where all are alike.
    """
    given = {layer for layer, kind in enumerate(kinds) if gives(kind)}  # without which others could not run
    free = [layer for layer in range(num_layers) if layer not in {*protected, *given}]
    scores = _scored(criterion, frozenset(), _single(free), progress, 0, len(free))
    importance = dict(zip(free, scores, strict=True))
    return ranked_layers([importance.get(layer, inf) for layer in range(num_layers)], protected, kinds)


def best_blocks(
    criterion: Criterion,
    num_layers: int,
    protected: Collection[int],
    counts: Collection[int],
    progress: Progress = silent,
    kinds: Sequence[str] = (),
) -> Tensor:
    """For each number of layers to keep, take out the contiguous run of layers whose loss costs least.

    Args:
        criterion: Scores a run by what is lost when all of it leaves.
        num_layers: Of the source.
        protected: Indices of layers that stay.
        counts: How many layers models keep, below `num_layers`.
        progress: Told the runs measured.
        kinds: Of the layers; none where all are alike.

    Raises:
        InvalidArchitectureError: If no run of the length that has to leave is free of protected layers, and of the
            kinds that have to leave.

    Source: Sreenivas et al. 2024 (arXiv 2408.11796), depth pruning; the best of all starts.
    """
    runs = {
        count: free_runs(num_layers, protected, num_layers - count, kinds) for count in sorted(counts, reverse=True)
    }
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
    kinds: Sequence[str] = (),
) -> Tensor:
    """Take out the layer whose loss costs least, score those that are left again without it, and so on.

    Args:
        criterion: Scores a layer by what is lost when it leaves too.
        num_layers: Of the source.
        protected: Indices of layers that stay.
        fewest: How many layers are left at the end.
        progress: Told the layers measured.
        kinds: Of the layers; none where all are alike.

    Source: NVIDIA 2025, Nemotron Elastic (arXiv 2511.16664), iterative layer removal.
    """
    own = kinds or ("",) * num_layers
    free = [layer for layer in range(num_layers) if layer not in protected]
    steps = range(num_layers, fewest, -1)
    leaving = [(kept_of_each_kind(own, count) - kept_of_each_kind(own, count - 1)).popitem()[0] for count in steps]
    room = Counter(own[layer] for layer in free)
    total = sum(room[kind] - leaving[:step].count(kind) for step, kind in enumerate(leaving))
    removed: frozenset[int] = frozenset()
    kept, done = {}, 0
    for kind in leaving:
        candidates = [layer for layer in free if layer not in removed and own[layer] == kind]
        scores = list(_scored(criterion, removed, _single(candidates), progress, done, total))
        done += len(candidates)
        best = min(reversed(range(len(candidates))), key=scores.__getitem__)
        removed |= {candidates[best]}
        kept[num_layers - len(removed)] = [layer for layer in range(num_layers) if layer not in removed]
    return layer_table(kept, num_layers)


def _single(layers: Iterable[int]) -> list[range]:
    return [range(layer, layer + 1) for layer in layers]


def free_runs(num_layers: int, protected: Collection[int], length: int, kinds: Sequence[str] = ()) -> list[range]:
    """Return all runs of so many layers that could leave, the earliest first.

    Args:
        num_layers: Of the source.
        protected: Indices of layers that stay.
        length: Of a run.
        kinds: Of the layers, of which as many leave as the number of them says; none where all are alike.

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
    if not kinds:
        return free
    leaving = Counter(kinds) - kept_of_each_kind(kinds, num_layers - length)
    alike = [run for run in free if Counter(kinds[layer] for layer in run) == leaving]
    if not alike:
        wanted = ", ".join(f"{count} {kind}" for kind, count in sorted(leaving.items()))
        raise InvalidArchitectureError(
            f"no {length} layers in a row are {wanted}, which a model of {num_layers - length} layers has to lose; keep"
            " another number of layers, protect fewer, or choose importance.depth.mode=layers or greedy"
        )
    return alike


def _scored(
    criterion: Criterion, removed: frozenset[int], runs: Sequence[range], progress: Progress, done: int, total: int
) -> Iterator[float]:
    for number, score in enumerate(criterion(removed, runs), start=done + 1):
        progress(number, total)
        yield score
