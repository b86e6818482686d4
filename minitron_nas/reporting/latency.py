"""How well the latency model of a run predicts: of layers that its fit left out, of whole models, of the members."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitron_nas.architecture.spec import SHAPE_FIELDS
from minitron_nas.evaluation.latency import PHASES, LatencyModel, Phase
from minitron_nas.reporting.members import ReportedMember


@dataclass(frozen=True, slots=True)
class PhaseEvidence:
    """How well one phase is predicted.

    Attributes:
        phase: Prefill or decode.
        r_squared: Of stacks of layers, cross-validated.
        layer_error: Median relative error of the same.
        mean_error: Mean relative error on whole models that took no part in the fit, without signs; None without any.
        largest_error: The largest of the same.
        members: For each member its name, the speed-up over the teacher that is predicted, and the one measured.
    """

    phase: Phase
    r_squared: float
    layer_error: float
    mean_error: float | None
    largest_error: float | None
    members: list[tuple[str, float, float]]


def latency_evidence(model: LatencyModel | None, members: Sequence[ReportedMember]) -> list[PhaseEvidence]:
    """Return what is known of each phase; nothing where a run has no latency model.

    Args:
        model: The run's.
        members: Of the run, the teacher first.
    """
    return [] if model is None else [_of_phase(model, phase, members) for phase in PHASES]


def _of_phase(model: LatencyModel, phase: Phase, members: Sequence[ReportedMember]) -> PhaseEvidence:
    errors, fit = np.abs(model.errors(phase)), model.phase(phase)
    timed = [each for each in members if each.value(f"{phase}_speedup") is not None]
    predicted = list[float]()
    if timed and members[0].value("hidden_size") is not None:
        seconds = model.predict(_shapes([members[0], *timed]))[f"{phase}_seconds"]
        predicted = (seconds[0] / seconds[1:]).tolist()
    told = [
        (member.title, speedup, float(member.value(f"{phase}_speedup")))
        for member, speedup in zip(timed, predicted, strict=False)
        if member.role != "teacher"
    ]
    return PhaseEvidence(
        phase,
        fit.r_squared,
        fit.layer_error,
        float(errors.mean()) if len(errors) else None,
        float(errors.max()) if len(errors) else None,
        told,
    )


def _shapes(members: Sequence[ReportedMember]) -> dict[str, Any]:
    names = [name for name in SHAPE_FIELDS if all(member.value(name) is not None for member in members)]
    return {name: np.array([member.value(name) for member in members], dtype=np.int64) for name in names}
