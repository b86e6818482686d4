"""What a run will cost, stage by stage, before anything runs."""

from minitron_nas.architecture.costs import count_parameters, forward_flops_per_token
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.run import RunTokens
from minitron_nas.settings import format_count

_BACKWARD = 3
"""Forward and backward together cost about three forward passes."""

_REPAIR = 3
"""Repairing a finalist or a student in sequence takes about as long as three forward passes of its source. It is
validated twice besides: so repaired, and repaired in one pass."""

_CORRECTION_VALIDATIONS = 10
"""Of the teacher: before, eight on the way, and after."""

_LOAD_SECONDS_AS_TOKENS = 1500
"""Starting a process and loading a model takes about as long as this many tokens' forward pass."""


def estimate_workload(plan: FamilyPlan, teacher: Checkpoint, tokens: RunTokens) -> dict[str, float]:
    """Return the FLOPs that each stage of a run is expected to take.

    Students are taken to cost what their share of the teacher's parameters says.

    Args:
        plan: The plan.
        teacher: The first teacher.
        tokens: The run's tokens.
    """
    context = plan.text.sequence_length // 2
    teacher_flops = forward_flops_per_token(teacher.architecture, teacher.layout, context)
    per_parameter = teacher_flops / count_parameters(teacher.architecture, teacher.layout)
    validation = tokens.part("validation").num_tokens
    calibration = tokens.part("calibration").num_tokens
    train = tokens.part("train").num_tokens
    rungs = plan.search.rung_tokens(tokens.distillation_tokens)
    overhead = _LOAD_SECONDS_AS_TOKENS
    cached = train if plan.distillation.caches_training else 0
    work: dict[str, float] = {"teacher signal": teacher_flops * (validation + cached)}
    if plan.correct is not None:
        corrected = plan.correct.tokens or tokens.distillation_tokens
        work["teacher correct"] = teacher_flops * (_BACKWARD * corrected + validation * _CORRECTION_VALIDATIONS)
    source, source_flops = "teacher", float(teacher_flops)
    for size in plan.descending_sizes:
        label, flops = format_count(size), size * per_parameter
        if plan.kd_teacher == "previous" and source != "teacher":
            work[f"{source} signal"] = source_flops * (validation + cached)
        work[f"{source} score"] = source_flops * calibration
        if plan.start == "rotate" or plan.repair == "ridge":
            work[f"{source} prepare"] = source_flops * calibration
        screened = min((plan.search.screen_sequences or 10**9) * plan.text.sequence_length, validation)
        work[f"{label} screen"] = flops * (screened + overhead) * plan.search.max_screened / 2
        alive, trial_tokens, previous = float(plan.search.num_finalists), 0.0, 0
        for rung in rungs:
            trial_tokens += alive * (_BACKWARD * (rung - previous) + validation + 3 * overhead)
            alive, previous = max(alive / plan.search.reduction, 1.0), rung
        starting = _REPAIR * source_flops * calibration + 2 * flops * validation if plan.repair == "ridge" else 0.0
        work[f"{label} tournament"] = flops * trial_tokens + plan.search.num_finalists * starting
        training = _BACKWARD * tokens.distillation_tokens + validation * (1 + plan.distillation.num_evaluations)
        names = [label, *([f"{label}-depth", f"{label}-random"] if plan.baselines else [])]
        for name in names:
            work[f"{name} distil"] = flops * (training + overhead)
            if not name.endswith("-random"):
                work[f"{name} distil"] += starting
            # Speed is measured in turns with the teacher.
            work[f"{name} evaluate"] = flops * (validation + 3 * overhead) + teacher_flops * 3 * overhead
        source, source_flops = label, flops
    work["teacher evaluate"] = teacher_flops * (validation + 3 * overhead)
    return work
