"""The tournament as an Optuna study, for everything that reads Optuna; the only module that imports it.

The run's own tables stay the truth. The study is written from them into a journal file, so that
`optuna-dashboard study.journal` shows the search.
"""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import optuna
from optuna.distributions import IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from minitron_nas.architecture.spec import SHAPE_FIELDS
from minitron_nas.search.tournament import TrialRow
from minitron_nas.space.enumerate import Candidate
from minitron_nas.storage.atomic import whole_file


def write_study(path: Path, size: str, candidates: Sequence[Candidate], rows: Sequence[TrialRow]) -> None:
    """Write one size's trials as a study; other sizes' studies in the file are kept.

    Args:
        path: The journal file.
        size: The study's name.
        candidates: All candidates; they give the ranges of the parameters.
        rows: Every rung of every trial.
    """
    distributions = {
        name: IntDistribution(min(sizes), max(sizes))
        for name in SHAPE_FIELDS
        if any(sizes := [getattr(candidate.architecture, name) for candidate in candidates])
    }
    with whole_file(path) as partial:
        partial.write_bytes(path.read_bytes() if path.exists() else b"")
        storage = JournalStorage(JournalFileBackend(str(partial)))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if size in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=size, storage=storage)
        study = optuna.create_study(study_name=size, storage=storage, direction="minimize")
        study.set_user_attr("metric", "validation KL(teacher || student) per token, in nats")
        for trial in _trials(rows, distributions):
            study.add_trial(trial)


def _trials(rows: Sequence[TrialRow], distributions: dict[str, IntDistribution]) -> list[FrozenTrial]:
    by_candidate: dict[str, list[TrialRow]] = {}
    for row in rows:
        by_candidate.setdefault(row.candidate.id, []).append(row)
    last_rung = max(row.rung for row in rows)
    return [_trial(trial_rows, last_rung, distributions) for trial_rows in by_candidate.values()]


def _trial(rows: Sequence[TrialRow], last_rung: int, distributions: dict[str, IntDistribution]) -> FrozenTrial:
    values = [(row.tokens, row.outcome.value) for row in rows]
    done = {tokens: kl for tokens, value in values if value is not None and isfinite(kl := float(value["kl_nats"]))}
    last = rows[-1]
    if last.outcome.status != "completed" or last.tokens not in done:
        state = TrialState.FAIL
    else:
        state = TrialState.COMPLETE if last.rung == last_rung else TrialState.PRUNED
    shape = rows[0].candidate.architecture
    return create_trial(
        state=state,
        value=done[last.tokens] if state != TrialState.FAIL else None,
        params={name: getattr(shape, name) for name in distributions},
        distributions=dict(distributions),
        intermediate_values=done,
        user_attrs={"num_parameters": rows[0].candidate.num_parameters},
    )
