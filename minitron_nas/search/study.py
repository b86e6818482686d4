"""The search as Optuna studies, for everything that reads Optuna; the only module that imports it.

The run's own tables stay the truth. The studies, one for each size, are written from them into a journal file, so
that `optuna-dashboard study.journal` shows the search.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

import optuna
from optuna.distributions import IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from minitron_nas.architecture.spec import SHAPE_FIELDS
from minitron_nas.storage.atomic import whole_file
from minitron_nas.storage.tables import Row


def write_study(path: Path, candidates: Sequence[Row], trials: Sequence[Row]) -> None:
    """Write a study of each size's trials, whole or not at all.

    Args:
        path: The journal file.
        candidates: Rows of `candidates.parquet`; they give the ranges of the parameters.
        trials: Rows of `trials.parquet`, in the order of rungs.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with whole_file(path) as partial:
        partial.unlink(missing_ok=True)
        storage = JournalStorage(JournalFileBackend(str(partial)))
        for size in dict.fromkeys(row["size"] for row in trials):
            study = optuna.create_study(study_name=size, storage=storage, direction="minimize")
            study.set_user_attr("metric", "validation KL(teacher || student) per token, in nats")
            shapes = {row["candidate"]: row for row in candidates if row["size"] == size}
            for trial in _trials([row for row in trials if row["size"] == size], shapes):
                study.add_trial(trial)


def _trials(rows: Sequence[Row], shapes: Mapping[str, Row]) -> list[FrozenTrial]:
    distributions = {
        name: IntDistribution(min(sizes), max(sizes))
        for name in SHAPE_FIELDS
        if any(sizes := [shape[name] or 0 for shape in shapes.values()])
    }
    by_candidate: dict[str, list[Row]] = {}
    for row in rows:
        by_candidate.setdefault(row["candidate"], []).append(row)
    last_rung = max(row["rung"] for row in rows)
    return [_trial(own, shapes[key], last_rung, distributions) for key, own in by_candidate.items()]


def _trial(
    rows: Sequence[Row], shape: Row, last_rung: int, distributions: Mapping[str, IntDistribution]
) -> FrozenTrial:
    done = {row["tokens"]: kl for row in rows if (kl := row["kl_nats"]) is not None and isfinite(kl)}
    last = rows[-1]
    if last["status"] != "completed" or last["tokens"] not in done:
        state = TrialState.FAIL
    else:
        state = TrialState.COMPLETE if last["rung"] == last_rung else TrialState.PRUNED
    return create_trial(
        state=state,
        value=done[last["tokens"]] if state != TrialState.FAIL else None,
        params={name: shape[name] for name in distributions},
        distributions=dict(distributions),
        intermediate_values=done,
        user_attrs={"num_parameters": shape["num_parameters"]},
    )
