"""`Forecast`: what a plan would do and cost, as values and in words."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from minitron_nas.architecture.costs import forward_flops_per_token
from minitron_nas.distillation.training.arguments import zero_stage
from minitron_nas.distillation.training.memory import TrainingMemory
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.models.outline import Outline
from minitron_nas.pipeline.clock import StageWork
from minitron_nas.pipeline.devices import Devices
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.room import Room
from minitron_nas.pipeline.workload import (
    BACKWARD,
    TokenCounts,
    estimate_workload,
    mean_forward_flops,
    some_candidates,
)
from minitron_nas.search.rates import MOST_PROBES, probe_schedule
from minitron_nas.search.tournament import ShortTraining
from minitron_nas.settings import about_bytes, format_count
from minitron_nas.space.enumerate import Enumeration
from minitron_nas.space.size import Size

_SIZES_HEAD = (
    ("", "                                     KD     FLOPs                       GB of a device"),
    ("size", "    shapes  screened  finalists    tokens    a step    FLOPs     hours     trial   student"),
)
"""Two lines, each from the column of labels, which is as wide as the longest, to the last."""


@dataclass(frozen=True, slots=True)
class StageForecast:
    """One stage.

    Attributes:
        name: As the ledger names it.
        size: The label of the size that it belongs to; None for the first teacher's own.
        flops: Floating-point operations on all devices together.
        hours: How long it takes.
    """

    name: str
    size: str | None
    flops: float
    hours: float


@dataclass(frozen=True, slots=True)
class SizeForecast:
    """One size.

    Attributes:
        size: Its label.
        num_shapes: Legal shapes, enumerated from the first teacher; those that the student before holds are its pool.
        num_screened: Those whose untrained KL is measured.
        num_finalists: Those that take part in the tournament.
        rung_tokens: KD tokens at the end of each rung; none at that of rung 0.
        trial_tokens: KD tokens of all trials together.
        probe_tokens: KD tokens, at most, of the trainings in which learning rates are tried.
        student_tokens: KD tokens of the student and its baselines together.
        step_flops: Of one training step of a student, by the mean of its shapes.
        flops: Of all stages of the size.
        hours: Of all stages of the size.
        trial_bytes: Memory of each device that trains a trial.
        distillation_bytes: Memory of each device that trains a student.
    """

    size: str
    num_shapes: int
    num_screened: int
    num_finalists: int
    rung_tokens: tuple[int, ...]
    trial_tokens: int
    probe_tokens: int
    student_tokens: int
    step_flops: float
    flops: float
    hours: float
    trial_bytes: int
    distillation_bytes: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a plan would do and cost.

    Attributes:
        teacher: What it is called.
        num_parameters: The teacher's.
        step_flops: Of a training step of a model of the teacher's shape.
        steps: Of one student.
        batch_sequences: Of a step.
        sequence_length: Tokens of a sequence.
        tokens: What is read.
        devices: What it runs on.
        flops_per_second: Of one device that trains.
        stages: In the order in which they run.
        sizes: Largest first.
        disk: Bytes of the run folder, by what they are for.
        disk_bytes: All of them.
    """

    teacher: str
    num_parameters: int
    step_flops: float
    steps: int
    batch_sequences: int
    sequence_length: int
    tokens: TokenCounts
    devices: Devices
    flops_per_second: float
    stages: tuple[StageForecast, ...]
    sizes: tuple[SizeForecast, ...]
    disk: Room
    disk_bytes: int

    @classmethod
    def of(
        cls,
        plan: FamilyPlan,
        teacher: Outline,
        pools: Mapping[Size, Enumeration],
        tokens: TokenCounts,
        devices: Devices,
        flops_per_second: float,
    ) -> Self:
        """Foresee a plan's run, by the figures that the run itself goes by.

        Args:
            plan: The plan.
            teacher: The first teacher.
            pools: The shapes of each size.
            tokens: What the run reads.
            devices: What it runs on.
            flops_per_second: Of one device that trains.
        """
        schedule = Schedule.resolve(plan.distillation, tokens.distillation, plan.text.sequence_length)
        work = estimate_workload(plan, teacher, pools, tokens, devices)
        stages = tuple(_stages(plan, work, flops_per_second))
        room = Room.of(plan, teacher, pools, tokens.train, devices)
        forward = forward_flops_per_token(teacher.architecture, teacher.layout, plan.text.sequence_length)
        return cls(
            teacher=plan.teacher,
            num_parameters=teacher.num_parameters,
            step_flops=step_flops(forward, schedule),
            steps=schedule.num_steps,
            batch_sequences=schedule.batch_sequences,
            sequence_length=schedule.sequence_length,
            tokens=tokens,
            devices=devices,
            flops_per_second=flops_per_second,
            stages=stages,
            sizes=tuple(_sizes(plan, teacher, pools, tokens, devices, stages)),
            disk=room,
            disk_bytes=room.total,
        )

    @property
    def flops(self) -> float:
        """Of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def hours(self) -> float:
        """Of all stages, which run one after the other."""
        return sum(stage.hours for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "flops": self.flops, "hours": self.hours}

    def lines(self) -> Iterator[str]:
        """Say it, a line at a time."""
        yield (
            f"teacher  {self.teacher}: {self.num_parameters:,} parameters; a training step of this shape would take "
            f"{_flops(self.step_flops)} FLOPs"
        )
        yield (
            f"tokens   {self.tokens.distillation:,} for each student: {self.steps:,} steps of {self.batch_sequences:,} "
            f"sequences of {self.sequence_length:,}; {self.tokens.calibration:,} for calibration, "
            f"{self.tokens.validation:,} for validation"
        )
        yield (
            f"devices  {self.devices.number} x {self.devices.name}, {about_bytes(self.devices.memory_bytes)} and "
            f"{_flops(self.flops_per_second)} FLOPs per second each"
        )
        yield ""
        width = max(24, *(len(stage.name) for stage in self.stages))
        yield f"{'stage':<{width}} {'FLOPs':>8} {'hours':>9}"
        for stage in self.stages:
            yield f"{stage.name:<{width}} {_flops(stage.flops):>8} {_hours(stage.hours):>9}"
        yield f"{'total':<{width}} {_flops(self.flops):>8} {_hours(self.hours):>9}"
        yield ""
        width = max(8, *(len(size.size) for size in self.sizes))
        yield from (f"{first:<{width}}{rest}" for first, rest in _SIZES_HEAD)
        for size in self.sizes:
            cells = (
                f"{size.size:<{width}}",
                f"{size.num_shapes:>9,}",
                f"{size.num_screened:>9,}",
                f"{size.num_finalists:>10,}",
                f"{format_count(size.trial_tokens + size.probe_tokens + size.student_tokens):>10}",
                f"{_flops(size.step_flops):>9}",
                f"{_flops(size.flops):>8}",
                f"{_hours(size.hours):>9}",
                f"{size.trial_bytes / 1e9:>9.1f}",
                f"{size.distillation_bytes / 1e9:>9.1f}",
            )
            yield " ".join(cells)
        rungs = ", ".join(format_count(tokens) for tokens in self.sizes[0].rung_tokens if tokens)
        trained = f"rungs end at {rungs} tokens" if rungs else "no trial is trained"
        yield f"{trained}; of a later size only the shapes remain that the student before it holds"
        yield ""
        parts = ", ".join(f"{name.replace('_', ' ')} {about_bytes(size)}" for name, size in asdict(self.disk).items())
        yield f"disk     {about_bytes(self.disk_bytes)} at most: {parts}"


def step_flops(forward_flops: float, schedule: Schedule) -> float:
    """Return the FLOPs of one training step.

    Args:
        forward_flops: Of a forward pass, per token.
        schedule: Says how many tokens a step has.
    """
    return BACKWARD * forward_flops * schedule.tokens_per_step


def _stages(plan: FamilyPlan, work: Mapping[str, StageWork], flops_per_second: float) -> Iterator[StageForecast]:
    """Yield a forecast of each stage; what is done with a source is done for the size that is cut from it."""
    labels = [size.label for size in plan.descending_sizes]
    size: str | None = None
    for name, stage in work.items():
        source, _, kind = name.rpartition(" ")
        if kind in {"signal", "score"} and source in ("teacher", *labels) and (kind == "score" or source != "teacher"):
            size = labels[0] if source == "teacher" else labels[labels.index(source) + 1]
        yield StageForecast(name, size, stage.flops, stage.duration(flops_per_second) / 3600)


def _sizes(
    plan: FamilyPlan,
    teacher: Outline,
    pools: Mapping[Size, Enumeration],
    tokens: TokenCounts,
    devices: Devices,
    stages: tuple[StageForecast, ...],
) -> Iterator[SizeForecast]:
    schedule = Schedule.resolve(plan.distillation, tokens.distillation, plan.text.sequence_length)
    rungs = tuple(plan.search.rung_tokens(tokens.distillation))
    probe = probe_schedule(plan.distillation, schedule, plan.search.last_rung(tokens.distillation))
    short = ShortTraining(plan.distillation, rungs, plan.search.reduction, plan.seed)
    for size in plan.descending_sizes:
        pool, label = pools[size], size.label
        own = [stage for stage in stages if stage.size == label]
        forward = mean_forward_flops(pool.candidates, teacher.layout, plan.text.sequence_length)
        trained = plan.search.finalists_of(len(pool.candidates))
        together = devices.of_a_distillation(plan.runner, plan.distillation, schedule)
        yield SizeForecast(
            size=label,
            num_shapes=len(pool.candidates),
            num_screened=plan.search.num_screened(len(pool.candidates)),
            num_finalists=trained,
            rung_tokens=rungs,
            trial_tokens=short.planned_tokens(trained, num_members=plan.members_per_size),
            probe_tokens=0 if probe is None else MOST_PROBES * probe.num_tokens,
            student_tokens=schedule.num_tokens * plan.num_distilled,
            step_flops=step_flops(forward, schedule),
            flops=sum(stage.flops for stage in own),
            hours=sum(stage.hours for stage in own),
            trial_bytes=_training_bytes(plan, teacher, pool, devices, devices.of_a_trial(plan.runner)),
            distillation_bytes=_training_bytes(plan, teacher, pool, devices, together),
        )


def _training_bytes(plan: FamilyPlan, teacher: Outline, pool: Enumeration, devices: Devices, num_devices: int) -> int:
    """Return the memory of each device that trains a shape, the largest of some, and of a teacher that runs beside."""
    settings = plan.distillation
    stage = zero_stage(settings) if num_devices > 1 else 0
    memories = (
        TrainingMemory.estimate(
            candidate.num_parameters,
            candidate.architecture,
            teacher.layout,
            settings.micro_batch_sequences * plan.text.sequence_length,
            devices.value_bytes,
            settings.gradient_checkpointing,
            stage,
            num_devices,
        )
        for candidate in some_candidates(pool.candidates)
    )
    beside = 0
    if settings.asks_teacher and not settings.caches_training:
        beside = teacher.num_parameters * devices.value_bytes // (num_devices if stage == 3 else 1)
    return max(int(sum(asdict(memory).values())) for memory in memories) + beside


def _flops(value: float) -> str:
    return f"{value:.1e}".replace("e+", "e").replace("e0", "e")


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 1 else f"{value:.1f}"
