"""What a run will cost, stage by stage, before anything runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from statistics import fmean
from typing import Self

from minitron_nas.architecture.costs import forward_flops_per_token
from minitron_nas.architecture.layout import Layout
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.importance.sums import text_shards
from minitron_nas.models.outline import Outline
from minitron_nas.pipeline.clock import StageWork
from minitron_nas.pipeline.devices import Devices
from minitron_nas.pipeline.member import Role, member_name
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.run import RunTokens
from minitron_nas.pruning.start import moments_bytes
from minitron_nas.search.rates import MOST_PROBES, probe_schedule
from minitron_nas.search.rungs import quotas
from minitron_nas.space.enumerate import Candidate, Candidates, Enumeration, expected_parameters
from minitron_nas.space.size import Size

BACKWARD = 3
"""Forward and backward together cost about three forward passes."""

_REPAIR = 3
"""Repairing a finalist or a student in sequence takes about as long as three forward passes of its source. It is
validated twice besides: so repaired, and repaired in one pass."""

_SCORING = 2.5
"""A pass that scores every part takes longer than one that only runs the model: it computes little of much it reads."""

_CORRECTION_VALIDATIONS = 10
"""Of the teacher: before, eight on the way, and after."""

_CUT_AS_TOKENS = 1500
"""Cutting a candidate or student from its source takes about as long as this many tokens' forward pass."""

_DECODED_AS_TOKENS = 50
"""A token that is decoded alone takes as long as so many in a prompt: all weights are read for it."""

_PROCESS_SECONDS = 15.0
"""Starting a process that loads a model, on whatever device."""

_COUNTED_CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens that a run reads.

    Attributes:
        distillation: KD tokens of one student.
        train: Of the text that they are taken from.
        validation: Held out.
        calibration: For scores, rotation and repair.
    """

    distillation: int
    train: int
    validation: int
    calibration: int

    @classmethod
    def planned(cls, plan: FamilyPlan, distillation_tokens: int) -> Self:
        """Return what a plan asks for.

        Args:
            plan: The plan.
            distillation_tokens: Of one student.
        """
        text, length = plan.text, plan.text.sequence_length
        used = Schedule.resolve(plan.distillation, distillation_tokens, length).num_tokens
        validation = text.validation_samples * plan.num_held_out_texts * length
        return cls(distillation_tokens, used, validation, text.calibration_samples * length)

    @classmethod
    def of(cls, tokens: RunTokens, plan: FamilyPlan) -> Self:
        """Count the tokens that a run has read.

        Args:
            tokens: The run's.
            plan: Tells what it asks for where they are not on this machine, because nothing has read them yet.
        """
        if not all(tokens.file(name).is_file() for name in ("train", "validation", "calibration")):
            return cls.planned(plan, tokens.distillation_tokens)
        return cls(
            tokens.distillation_tokens,
            *(tokens.part(name).num_tokens for name in ("train", "validation", "calibration")),
        )


def estimate_workload(
    plan: FamilyPlan,
    teacher: Outline,
    pools: Mapping[Size, Enumeration],
    tokens: TokenCounts,
    devices: Devices,
) -> dict[str, StageWork]:
    """Return what each stage of a run is expected to take, in the order in which stages run.

    A student costs what the shapes of its size cost on average. Attention is counted over the whole sequence, as
    the Minitron papers and figures of utilisation do, though causal kernels compute half of it.

    Args:
        plan: The plan.
        teacher: The first teacher.
        pools: The shapes of each size.
        tokens: What the run reads.
        devices: What it runs on.
    """
    return dict(_Costs(plan, teacher, pools, tokens, devices).stages())


def mean_forward_flops(candidates: Candidates, layout: Layout, sequence_length: int) -> float:
    """Return the FLOPs of a forward pass, per token, of shapes on average; of many, some count.

    Args:
        candidates: The shapes; at least one.
        layout: The table of their family.
        sequence_length: Tokens of a sequence.
    """
    shapes = (candidate.architecture for candidate in some_candidates(candidates))
    return fmean(forward_flops_per_token(shape, layout, sequence_length) for shape in shapes)


def some_candidates(candidates: Candidates) -> list[Candidate]:
    """Return some candidates of many, which lie evenly, the first among them; all of few.

    Args:
        candidates: Of one size.
    """
    step = max(ceil(len(candidates) / _COUNTED_CANDIDATES), 1)
    return [candidates[index] for index in range(0, len(candidates), step)]


class _Costs:
    """The costs of one plan's stages; forward passes are in FLOPs per token."""

    def __init__(
        self,
        plan: FamilyPlan,
        teacher: Outline,
        pools: Mapping[Size, Enumeration],
        tokens: TokenCounts,
        devices: Devices,
    ) -> None:
        length = plan.text.sequence_length
        self._plan, self._tokens, self._devices, self._pools = plan, tokens, devices, pools
        self._teacher, self._layout = teacher, teacher.layout
        self._schedule = Schedule.resolve(plan.distillation, tokens.distillation, length)
        self._trial_tokens = plan.trial_tokens(tokens.distillation, teacher.architecture.hidden_size)
        self._probe = probe_schedule(plan.distillation, self._schedule, plan.search.last_rung(tokens.distillation))
        self._first = float(forward_flops_per_token(teacher.architecture, teacher.layout, length))
        self._students = {
            size: mean_forward_flops(pool.candidates, teacher.layout, length) for size, pool in pools.items()
        }

    def stages(self) -> Iterator[tuple[str, StageWork]]:
        plan = self._plan
        if plan.correct is not None:
            yield "teacher correct", self._correct(plan.correct.tokens or self._tokens.distillation)
        yield "teacher signal", self._signal(self._first)
        yield "teacher evaluate", self._evaluate(self._first)
        source, forward, share = "teacher", self._first, 1.0
        for size in plan.descending_sizes:
            label, student = size.label, self._students[size]
            if plan.kd_teacher == "previous" and source != "teacher":
                yield f"{source} signal", self._signal(forward)
            yield f"{source} score", self._score(forward)
            if plan.start == "rotate" or plan.repair == "ridge":
                yield f"{source} prepare", self._prepare(forward, share)
            yield f"{label} screen", self._screen(size, student)
            lecturer = forward if plan.kd_teacher == "previous" else self._first
            if self._probe is not None:
                yield f"{label} rate", self._rate(self._probe, student, lecturer, forward)
            yield f"{label} tournament", self._tournament(size, student, lecturer, forward)
            with_starts = plan.members_per_size if plan.search.num_rungs else int(self._probe is not None)
            members: list[tuple[Role, int]] = [("student", number) for number in range(1, plan.members_per_size + 1)]
            members += [(baseline, 1) for baseline in plan.baselines]
            for index, (role, number) in enumerate(members):
                name = member_name(label, role, number)
                begun = role == "random_weights" or (role == "student" and number <= with_starts)
                waves = self._waves(len(members), index)
                yield f"{name} distil", self._distil(student, lecturer, 0.0 if begun else forward, waves)
                yield f"{name} evaluate", self._evaluate(student, self._first)
            whole = self._teacher.num_parameters
            source, forward, share = label, student, expected_parameters(size, self._pools[size], whole) / whole

    def _correct(self, num_tokens: int) -> StageWork:
        return _on_one(self._first * (BACKWARD * num_tokens + self._tokens.validation * _CORRECTION_VALIDATIONS))

    def _signal(self, forward: float) -> StageWork:
        """Final hidden states need no output head; students have about the teacher's share of it. Shards are shared."""
        shape, settings = self._teacher.architecture, self._plan.distillation
        headless = forward * (1 - 2 * shape.hidden_size * shape.vocab_size / self._first)
        cached = self._tokens.train if settings.caches_training else 0
        said = headless if settings.cached_top_k is None else forward
        heard = self._tokens.validation + self._trial_tokens
        flops = headless * heard + said * cached
        return StageWork(flops, flops / self._devices.trials_at_once(self._plan.runner))

    def _score(self, forward: float) -> StageWork:
        """The text's shards are shared."""
        flops = forward * self._tokens.calibration
        shards = text_shards(ceil(self._tokens.calibration / self._plan.text.sequence_length))
        return StageWork(flops, flops * _SCORING / min(self._devices.trials_at_once(self._plan.runner), len(shards)))

    def _prepare(self, forward: float, share: float) -> StageWork:
        """One pass for the rotation and one for the repair; a second moment is a product of its matrix' size.

        Those of the layers are shared, and each device that measures some runs the whole model.
        """
        num_layers = self._teacher.architecture.num_hidden_layers
        at_once = min(self._devices.trials_at_once(self._plan.runner), num_layers)
        flops = path = 0.0
        for readers, wanted in (("norms", self._plan.start == "rotate"), ("projections", self._plan.repair == "ridge")):
            if wanted:
                values = moments_bytes(self._teacher, readers) / 4  # type: ignore[arg-type]
                products = 2 * values * share
                flops += self._tokens.calibration * (forward * at_once + products)
                path += self._tokens.calibration * (forward + products / at_once)
        return StageWork(flops, path)

    def _screen(self, size: Size, student: float) -> StageWork:
        search, length = self._plan.search, self._plan.text.sequence_length
        num_jobs = search.num_screened(len(self._pools[size].candidates))
        wanted = (search.screen_sequences or self._tokens.validation) * self._plan.num_held_out_texts
        read = min(wanted * length, self._tokens.validation)
        return self._jobs(num_jobs, student * (read + _CUT_AS_TOKENS), 1)

    def _tournament(self, size: Size, student: float, lecturer: float, source: float) -> StageWork:
        search, devices = self._plan.search, self._devices.of_a_trial(self._plan.runner)
        ends = search.rung_tokens(self._tokens.distillation)
        num_finalists = search.finalists_of(len(self._pools[size].candidates))
        field = quotas(num_finalists, ends, search.reduction, self._plan.members_per_size)
        begun = int(self._probe is not None)  # with which learning rates were tried
        parts = [self._jobs(field[0] - begun, self._start(student, source), 1)] if ends else []
        beside = 0.0 if self._trial_tokens else lecturer
        for alive, (previous, end) in zip(field[:-1], pairwise([0, *ends]), strict=False):
            if end:
                trial = self._training(end - previous, student, beside) + student * (
                    self._tokens.validation + 2 * _CUT_AS_TOKENS
                )
                parts.append(self._jobs(alive, trial, devices))
        return StageWork(sum(part.flops for part in parts), sum(part.path_flops for part in parts))

    def _rate(self, probe: Schedule, student: float, lecturer: float, repaired_from: float) -> StageWork:
        """Three rates at a time, and then, at most, one more."""
        beside = 0.0 if self._trial_tokens else lecturer
        validated = student * (self._tokens.validation + _CUT_AS_TOKENS)
        flops = self._training(probe.num_tokens, student, beside) + validated
        devices, start = self._devices.of_a_trial(self._plan.runner), _on_one(self._start(student, repaired_from))
        parts = [start, *(self._jobs(number, flops, devices) for number in (MOST_PROBES - 1, 1))]
        return StageWork(sum(part.flops for part in parts), sum(part.path_flops for part in parts))

    def _start(self, student: float, repaired_from: float) -> float:
        """A student is repaired in two ways, and each is validated; nothing if it is not repaired, or was before."""
        if self._plan.repair == "none" or not repaired_from:
            return 0.0
        return repaired_from * _REPAIR * self._tokens.calibration + 2 * student * self._tokens.validation

    def _training(self, num_tokens: int, student: float, lecturer: float) -> float:
        settings = self._plan.distillation
        beside = lecturer if settings.asks_teacher and not settings.caches_training else 0.0
        return num_tokens * (BACKWARD * student + beside)

    def _waves(self, num_members: int, index: int) -> int:
        """Return how many trainings one after the other a member's stage takes; the first's has those side by side."""
        at_once = self._devices.distillations_at_once(self._plan.runner, self._plan.distillation, self._schedule)
        return 1 if at_once == 1 else 0 if index else ceil(num_members / at_once)

    def _distil(self, student: float, lecturer: float, repaired_from: float, waves: int) -> StageWork:
        settings, runner = self._plan.distillation, self._plan.runner
        shared = self._training(self._tokens.distillation, student, lecturer)
        shared += student * self._tokens.validation * (1 + settings.num_evaluations)
        alone = student * _CUT_AS_TOKENS + self._start(student, repaired_from)
        devices = self._devices.of_a_distillation(runner, settings, self._schedule)
        return StageWork(shared + alone, waves * shared / devices + alone)

    def _evaluate(self, forward: float, beside: float = 0.0) -> StageWork:
        """Speed is measured in turns with the teacher."""
        asked = self._plan.evaluation
        spoken = asked.prompt_tokens + asked.decode_tokens
        timed = asked.prompt_tokens + asked.decode_tokens * _DECODED_AS_TOKENS
        held_out, times = self._tokens.validation, asked.repeats + 1
        flops = forward * held_out + (forward + beside) * times * spoken
        return StageWork(flops, forward * held_out + (forward + beside) * times * timed, _PROCESS_SECONDS)

    def _jobs(self, number: int, flops: float, devices: int) -> StageWork:
        """Jobs of equal size, as many at once as there is room for."""
        waves = ceil(number / self._devices.trials_at_once(self._plan.runner))
        return StageWork(number * flops, waves * flops / devices)


def _on_one(flops: float) -> StageWork:
    """Work of one device."""
    return StageWork(flops, flops)
