"""The search as Optuna studies, for everything that reads Optuna; with `optuna_sampler.py` all that imports it.

The run's own tables stay the truth. The studies, up to three for each size, are written from them into a journal file,
so that `optuna-dashboard study.journal` shows the search: what was screened, against every objective, the trials, each
with its KL untrained and after each rung, and the learning rates that were tried.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from minitron_nas.architecture.spec import SHAPE_FIELDS
from minitron_nas.storage.atomic import whole_file
from minitron_nas.storage.tables import Row

_VALIDATION_KL = "validation KL(teacher || student) in nats"


def write_study(
    path: Path, candidates: Sequence[Row], trials: Sequence[Row], others: Sequence[str], rates: Sequence[Row] = ()
) -> None:
    """Write the studies of each size, of its screening, its trials and its learning rates, whole or not at all.

    Args:
        path: The journal file.
        candidates: Rows of `candidates.parquet` that were screened; they give the ranges of the parameters.
        trials: Rows of `trials.parquet`, in the order of rungs.
        others: Objectives of the screening beside KL, columns of the candidates.
        rates: Rows of `rates.parquet`.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with whole_file(path) as partial:
        partial.unlink(missing_ok=True)
        storage = JournalStorage(JournalFileBackend(str(partial)))
        for size in dict.fromkeys(row["size"] for row in candidates):
            shapes = {row["candidate"]: row for row in candidates if row["size"] == size}
            study = _minimising(storage, f"{size} screened", ["untrained KL(teacher || candidate) in nats", *others])
            study.add_trials([_screened(row, others, _distributions(shapes)) for row in shapes.values()])
            own = [row for row in trials if row["size"] == size]
            if own:
                study = _minimising(storage, size, [_VALIDATION_KL])
                study.add_trials(_trials(own, shapes))
            tried = [row for row in rates if row["size"] == size]
            if tried:
                study = _minimising(storage, f"{size} rates", [_VALIDATION_KL])
                study.add_trials([_rate(row, [each["learning_rate"] for each in tried]) for row in tried])


def _minimising(storage: JournalStorage, name: str, metrics: Sequence[str]) -> optuna.Study:
    """Create a study whose axes the dashboard names."""
    study = optuna.create_study(study_name=name, storage=storage, directions=[StudyDirection.MINIMIZE] * len(metrics))
    with catch_warnings(action="ignore", category=ExperimentalWarning):
        study.set_metric_names(list(metrics))
    return study


def _distributions(shapes: Mapping[str, Row]) -> dict[str, IntDistribution]:
    return {
        name: IntDistribution(min(sizes), max(sizes))
        for name in SHAPE_FIELDS
        if any(sizes := [shape[name] or 0 for shape in shapes.values()])
    }


def _screened(shape: Row, others: Sequence[str], distributions: Mapping[str, IntDistribution]) -> FrozenTrial:
    """One candidate of the screening; failed where it has no finite KL."""
    kl = shape["screen_kl_nats"]
    given: dict[str, Any] = {
        "params": {name: shape[name] for name in distributions},
        "distributions": dict(distributions),
        "user_attrs": {"candidate": shape["candidate"], "round": shape["round"], "outcome": shape["outcome"]},
    }
    if kl is None or not isfinite(kl):
        return create_trial(state=TrialState.FAIL, **given)
    return create_trial(values=[kl, *(float(shape[name]) for name in others)], **given)


def _rate(row: Row, all_rates: Sequence[float]) -> FrozenTrial:
    """One learning rate that was tried; failed where it has no KL."""
    return create_trial(
        state=TrialState.COMPLETE if row["status"] == "completed" else TrialState.FAIL,
        value=row["kl_nats"],
        params={"learning_rate": row["learning_rate"]},
        distributions={"learning_rate": FloatDistribution(min(all_rates), max(all_rates), log=True)},
        user_attrs={name: row[name] for name in ("candidate", "tokens", "chosen", "status")},
    )


def _trials(rows: Sequence[Row], shapes: Mapping[str, Row]) -> list[FrozenTrial]:
    distributions = _distributions(shapes)
    by_candidate: dict[str, list[Row]] = {}
    for row in rows:
        by_candidate.setdefault(row["candidate"], []).append(row)
    last_rung = max(row["rung"] for row in rows)
    return [_trial(own, shapes[key], last_rung, distributions) for key, own in by_candidate.items()]


def _trial(
    rows: Sequence[Row], shape: Row, last_rung: int, distributions: Mapping[str, IntDistribution]
) -> FrozenTrial:
    done = {row["tokens"]: kl for row in rows if (kl := row["kl_nats"]) is not None and isfinite(kl)}
    last, untrained = rows[-1], shape["screen_kl_nats"]
    if last["status"] != "completed" or last["tokens"] not in done:
        state = TrialState.FAIL
    else:
        state = TrialState.COMPLETE if last["rung"] == last_rung else TrialState.PRUNED
    if untrained is not None and isfinite(untrained):
        done = {0: untrained, **done}
    return create_trial(
        state=state,
        value=done[last["tokens"]] if state != TrialState.FAIL else None,
        params={name: shape[name] for name in distributions},
        distributions=dict(distributions),
        intermediate_values=done,
        user_attrs={"num_parameters": shape["num_parameters"]},
    )
