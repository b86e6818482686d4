"""`Room`: what a run will write, in bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from minitron_nas.distillation.signals.choice import Speech, kept_bytes, settle
from minitron_nas.importance.sums import num_scores, sums_bytes, text_shards
from minitron_nas.models.outline import Outline
from minitron_nas.pipeline.devices import Devices
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pruning.start import moments_bytes
from minitron_nas.pruning.whole import check_axes_beside, require_tower, space_beside
from minitron_nas.search.rates import MOST_PROBES
from minitron_nas.search.rungs import most_trained
from minitron_nas.space.enumerate import Enumeration, expected_parameters
from minitron_nas.space.size import Size
from minitron_nas.text.token_log import ONE_PASS_TOKENS
from minitron_nas.text.tokens import token_dtype
from minitron_nas.text.unpacked import text_bytes

_TRAINING_BYTES_PER_PARAMETER = 12
"""A checkpoint holds float32 weights and Adam's two moments."""

_START_BYTES_PER_PARAMETER = 4
"""A distillation begins with float32 weights in a file; a full one also ends so, and keeps its best on the way, at most
twice."""

BYTES_PER_TOKEN = 4
"""Of English, about."""

_SCORE_BYTES = 24
"""As a number and as a row, and a place in the order."""

_REPORT_BYTES = 5_400_000
"""Most of it draws the figures; a new one is written beside the old."""


@dataclass(frozen=True, slots=True)
class Room:
    """The most that lies in a run folder at a time, in bytes.

    Attributes:
        models: Students, baselines and a corrected teacher, with what lies beside their weights; of a student that is
            put into its wrapper, for a while, also the text part alone.
        training: Checkpoints of the largest training and of those beside it, of all trials, or of all learning rates
            that are tried; or the sums that scores are made of, or second moments that are gone once the basis of
            channels is found.
        teacher_states: What teachers say over the text.
        moments: Second moments of what is pruned.
        others: Tokens, scores, rotations and the report.
    """

    models: int
    training: int
    teacher_states: int
    moments: int
    others: int

    @classmethod
    def of(
        cls,
        plan: FamilyPlan,
        teacher: Outline,
        pools: Mapping[Size, Enumeration],
        train_tokens: int,
        devices: Devices,
    ) -> Self:
        """Estimate it.

        Args:
            plan: The plan.
            teacher: The first teacher.
            pools: The shapes of each size, as far as they are known.
            train_tokens: Of a student.
            devices: What it runs on; where several train a trial, it begins with weights in a file.
        """
        sizes = _parameters(plan, teacher, pools)
        corrected = plan.correct is not None
        stored, members = teacher.weights_bytes / teacher.num_parameters, plan.num_distilled
        models = sum(sizes) * stored * members + teacher.weights_bytes * corrected
        models += len(sizes) * members * (teacher.companions_bytes + _tower_bytes(plan, teacher))
        models += 0 if plan.text_only else max(sizes) * stored
        trained = teacher.num_parameters if corrected else max(sizes)
        checkpoints = trained * 2 * (_TRAINING_BYTES_PER_PARAMETER + 2 * _START_BYTES_PER_PARAMETER)
        checkpoints *= _beside_each_other(plan, members, devices)
        basis = moments_bytes(teacher, "norms") if plan.start == "rotate" else 0
        trials = max(sizes) * _trial_bytes(plan, num_finalists(plan, pools), train_tokens)
        probes = max(sizes) * (MOST_PROBES * _TRAINING_BYTES_PER_PARAMETER + _START_BYTES_PER_PARAMETER)
        probed = plan.distillation.learning_rate == "auto"
        sums = len(text_shards(plan.text.calibration_samples)) * sums_bytes(teacher.architecture, teacher.layout)
        return cls(
            models=int(models),
            training=max(checkpoints, trials, probes * probed, basis, sums, _REPORT_BYTES),
            teacher_states=_states_bytes(plan, teacher, train_tokens, devices.value_bytes),
            moments=_moments_bytes(plan, teacher, sizes),
            others=_REPORT_BYTES + _tokens_bytes(plan, teacher, train_tokens) + _rankings_bytes(plan, teacher),
        )

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


def _beside_each_other(plan: FamilyPlan, members: int, devices: Devices) -> int:
    """Return how many of a size's trainings may have checkpoints at a time; a cluster may have room for all."""
    runner = plan.runner
    if runner.on_cluster:
        return members
    at_once = devices.number // runner.num_processes if runner.kind == "ray" and runner.num_processes else 1
    return max(min(at_once, members), 1)


def settled(
    plan: FamilyPlan, teacher: Outline, num_tokens: int | None, free_bytes: int, value_bytes: int
) -> tuple[FamilyPlan, str]:
    """Return a plan with nothing left open: its teacher signal, see `settle`, and what a tower leaves to prune.

    Args:
        plan: The plan.
        teacher: The first teacher.
        num_tokens: KD tokens of one student; None where that is not known before the text is read.
        free_bytes: Of the disk that the run lies on.
        value_bytes: Of a number that teachers compute with.

    Raises:
        PlanError: If a tower is to stay that is not there.
        SpaceError: If it leaves nothing to prune.
    """
    shape = teacher.architecture
    num_teachers = _num_teachers(plan)
    whole = None if num_tokens is None else num_tokens * num_teachers
    num_trainings = plan.num_distilled * len(plan.sizes) // num_teachers
    speech = Speech(whole, num_trainings, shape.vocab_size, shape.hidden_size * value_bytes)
    distillation, told = settle(plan.distillation, speech, free_bytes)
    changes: dict[str, Any] = {"distillation": distillation}
    if not plan.text_only:
        tower = require_tower(teacher, plan.teacher)
        changes |= {"start": "select", "space": space_beside(tower, plan.space)}
        check_axes_beside(tower, changes["space"])
    return plan.model_copy(update=changes), told


def assumed_tokens(plan: FamilyPlan) -> int | None:
    """Return the KD tokens of one student: the plan's, or those of one pass over its text; None where it has no files.

    Args:
        plan: The plan.
    """
    if plan.distillation.tokens is not None:
        return plan.distillation.tokens
    num_bytes = text_bytes(plan.data, plan.text)
    return None if num_bytes is None else min(max(num_bytes // BYTES_PER_TOKEN, 1), ONE_PASS_TOKENS)


def _num_teachers(plan: FamilyPlan) -> int:
    return len(plan.sizes) if plan.kd_teacher == "previous" else 1


def num_finalists(plan: FamilyPlan, pools: Mapping[Size, Enumeration]) -> int:
    """Return how many finalists a size has at most.

    Args:
        plan: The plan.
        pools: The shapes of each size.
    """
    return max((plan.search.finalists_of(len(pool.candidates)) for pool in pools.values()), default=0)


def _trial_bytes(plan: FamilyPlan, finalists: int, train_tokens: int) -> int:
    """Return what finalists leave for each parameter: all begin, and those that are trained have checkpoints."""
    search = plan.search
    ends = search.rung_tokens(train_tokens)
    trained = most_trained(finalists, ends, search.reduction, plan.members_per_size)
    begun = finalists * _START_BYTES_PER_PARAMETER
    return max(begun, trained * (_TRAINING_BYTES_PER_PARAMETER + _START_BYTES_PER_PARAMETER))


def _parameters(plan: FamilyPlan, teacher: Outline, pools: Mapping[Size, Enumeration]) -> list[int]:
    """Return the total parameters of a student of each size, in the order in which they are built."""
    return [expected_parameters(size, pools.get(size), teacher.num_parameters) for size in plan.descending_sizes]


def _tower_bytes(plan: FamilyPlan, teacher: Outline) -> int:
    """Return the bytes of what looks at pictures beside every student; 0 where it is left out."""
    return 0 if plan.text_only or teacher.tower is None else teacher.tower.num_bytes


def _states_bytes(plan: FamilyPlan, teacher: Outline, train_tokens: int, value_bytes: int) -> int:
    """Return the bytes of what is kept of each KD teacher's words; a student that teaches is no wider than the first.

    Over held-out text and that of trials all of them are kept, over training text as the plan says.
    """
    shape, text = teacher.architecture, plan.text
    state = shape.hidden_size * value_bytes
    held_out = text.validation_samples * plan.num_held_out_texts * text.sequence_length
    held_out += plan.trial_tokens(train_tokens, shape.hidden_size)
    return _num_teachers(plan) * (
        held_out * state + train_tokens * kept_bytes(plan.distillation, shape.vocab_size, state)
    )


def _moments_bytes(plan: FamilyPlan, teacher: Outline, sizes: Sequence[int]) -> int:
    """Return the bytes of the second moments of all models that are pruned; they grow with a model's size."""
    pruned = [teacher.num_parameters, *sizes[:-1]]
    whole = moments_bytes(teacher, "projections") if plan.repair == "ridge" else 0
    return int(whole * sum(pruned) / teacher.num_parameters)


def _token_bytes(plan: FamilyPlan, teacher: Outline) -> int:
    return token_dtype(teacher.architecture.vocab_size).itemsize + token_dtype(plan.text.sequence_length).itemsize


def _tokens_bytes(plan: FamilyPlan, teacher: Outline, train_tokens: int) -> int:
    sequences = plan.text.calibration_samples + plan.text.validation_samples * plan.num_held_out_texts
    return (train_tokens + sequences * plan.text.sequence_length) * _token_bytes(plan, teacher)


def _rankings_bytes(plan: FamilyPlan, teacher: Outline) -> int:
    """Return the bytes of what is known of each model that is pruned: its text, scores, order and rotation."""
    shape, text = teacher.architecture, plan.text
    rotation = 8 * shape.hidden_size**2 if plan.start == "rotate" else 0
    calibration = text.calibration_samples * text.sequence_length * _token_bytes(plan, teacher)
    scored = num_scores(shape, teacher.layout) * _SCORE_BYTES
    return len(plan.sizes) * (calibration + scored + rotation)
