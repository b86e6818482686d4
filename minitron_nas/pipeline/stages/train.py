"""The stages that train: a size's student, and the baselines it is held against."""

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minitron_nas.architecture.kinds import fewest_layers
from minitron_nas.architecture.rules import layers_that_stay
from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.job import JOB, TrainingFiles, TrainingJob
from minitron_nas.distillation.launch import run as run_training
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import HiddenCache
from minitron_nas.distillation.training.curve import CurvePoint, TrainingResult
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.execution.device import release_memory
from minitron_nas.models.loading import load_for_training
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.board import Board
from minitron_nas.pipeline.engine import Done, Left, Stage
from minitron_nas.pipeline.hop import Hop
from minitron_nas.pipeline.member import Role, TrainedMember, member_name
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.run import Run
from minitron_nas.pipeline.stages.side_by_side import Trainers
from minitron_nas.pipeline.steps.distill import export
from minitron_nas.pipeline.versions import versions
from minitron_nas.progress import Progress
from minitron_nas.pruning.export import stored_dtype
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.start import TakenStart
from minitron_nas.pruning.student import random_student
from minitron_nas.search.costing import Costing
from minitron_nas.search.start import MeasuredStart, Starts
from minitron_nas.space.size import Size
from minitron_nas.storage.atomic import whole_folder
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.storage.lineage import Lineage, Origin, Proof, read_lineage
from minitron_nas.storage.schemas import CURVES
from minitron_nas.text.tokens import PackedTokens

_TITLES: dict[Role, str] = {
    "student": "full distillation of",
    "depth_only": "baseline: depth only,",
    "random_shape": "baseline: a shape drawn at random,",
    "largest_shape": "baseline: the shape with the most parameters,",
    "random_weights": "baseline: the same shape from random weights,",
}


def depth_only_target(costing: Costing, size: Size, protected: Collection[int]) -> Architecture:
    """Return a model's shape with only unprotected layers dropped, as near to a size as whole layers allow.

    Args:
        costing: Says which shape is pruned, and what others have in the unit of the size.
        size: How large it is to be.
        protected: Layers that stay, negative ones from the end.
    """
    source = costing.source
    fewest = _fewest(costing, protected)
    layers = np.arange(min(fewest, source.num_hidden_layers - 1), source.num_hidden_layers)
    whole = {name: np.full_like(layers, getattr(source, name)) for name in costing.layout.column_fields()}
    values = costing.measure(size)({**whole, "num_hidden_layers": layers})
    return source.reshaped({"num_hidden_layers": int(layers[np.abs(values - size.value).argmin()])})


def layer_counts(plan: FamilyPlan, costing: Costing, size: Size) -> set[int]:
    """Return the numbers of layers that candidates of the plan's space have, and the depth-only baseline if wanted.

    Args:
        plan: Names the space.
        costing: Says which shape is pruned, and what others have in the unit of the size.
        size: How large students are to be.
    """
    protected, least = plan.space.protected_layers, _fewest(costing, plan.space.protected_layers)
    steps = plan.space.axes.sizes("num_hidden_layers", costing.source)
    counts = {step for step in steps if least <= step <= costing.source.num_hidden_layers}
    if "depth_only" not in plan.baselines:
        return counts
    return counts | {depth_only_target(costing, size, protected).num_hidden_layers}


def _fewest(costing: Costing, protected: Collection[int]) -> int:
    """The fewest layers of a model with those that are protected, and the last where it has to stay."""
    staying = layers_that_stay(protected, costing.source, costing.layout)
    return max(fewest_layers(costing.source.kinds, staying), 1)


@dataclass(frozen=True, slots=True)
class PlannedMember:
    """A model of a size that is to be trained.

    Attributes:
        role: What it is.
        target: Its shape.
        number: Which of the size's students it is, from 1.
    """

    role: Role
    target: Architecture
    number: int = 1


def train_member(
    run: Run, hop: Hop, planned: PlannedMember, later: Sequence[PlannedMember] = ()
) -> tuple[TrainedMember, Done]:
    """Distil one model on the run's tokens, export it with its proof, and return it and the stage that did it.

    Args:
        run: The run.
        hop: The size.
        planned: The model.
        later: Those of the size that come after it; where there is room they are trained beside it, and their own
            stages find that done.
    """
    plan, name = run.plan, _name(hop, planned)
    folder, checkpoints = _folder(run, hop, planned), run.folder.checkpoints(name)

    def action(progress: Progress) -> Left:
        board = Board(progress, run.engine.stand)
        of_others = _train_side_by_side(run, hop, planned, later, board)
        start, measured = _write_start(run, hop, planned, board.starting)
        job = _training(run, hop, planned, start)
        result = board.trained(job, partial(run_training, job, plan.runner))
        untrained = _untrained_kl(run, hop, start, result)
        rows = [_curve_row(name, hop.label, planned.role, point) for point in result.curve]
        if result.harm is not None:
            run.engine.note(f"{name}: {result.harm}")
        trained, exported = job.schedule.num_tokens, result.best.tokens
        came = _lineage(run, hop, planned, measured)
        lineage = replace(came, tokens_trained=trained, exported_tokens=exported)
        proof = run.workers.call(
            export,
            training=job.out / JOB,
            source=hop.source.checkpoint.path,
            folder=folder,
            dtype=stored_dtype(run.teacher.checkpoint.path),
            lineage=lineage,
            text_only=plan.text_only,
        )
        path = str(folder.relative_to(run.folder.path))
        member = TrainedMember(name, planned.role, hop.label, path, trained, exported, untrained, Proof(**proof))
        return Left(member.to_dict(), rows=((CURVES, rows),), of_others=of_others)

    done = run.engine.run(_stage(run, hop, planned), action)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return TrainedMember.from_dict(done.result), done


def _name(hop: Hop, planned: PlannedMember) -> str:
    return member_name(hop.label, planned.role, planned.number)


def _folder(run: Run, hop: Hop, planned: PlannedMember) -> Path:
    name = _name(hop, planned)
    return run.folder.student(name) if planned.role == "student" else run.folder.baseline(name)


def _stage(run: Run, hop: Hop, planned: PlannedMember) -> Stage:
    return Stage(
        f"{_name(hop, planned)} distil",
        f"{_TITLES[planned.role]} {planned.target.id}",
        inputs.of_training(run.plan, planned.role, planned.target, hop.learning_rate),
        needs=(run.tokens.done, *hop.needs),
        outputs=[_folder(run, hop, planned)],
        costly=True,
    )


def _training(run: Run, hop: Hop, planned: PlannedMember, start: Path) -> TrainingJob:
    """Return the training of a member that begins with the weights in a folder."""
    plan, checkpoints = run.plan, run.folder.checkpoints(_name(hop, planned))
    settings = plan.distillation.at_rate(hop.learning_rate)
    schedule = Schedule.resolve(settings, run.tokens.distillation_tokens, plan.text.sequence_length)
    return TrainingJob(start, hop.lessons.files, settings, schedule, checkpoints, plan.seed, checkpoints / "training")


def _train_side_by_side(
    run: Run, hop: Hop, first: PlannedMember, later: Sequence[PlannedMember], board: Board
) -> dict[str, float]:
    """Train those members of a size whose stages are to come, if there is room for several at once.

    Returns:
        The seconds of it that went into the work of each later stage, by its name.
    """
    began = time.perf_counter()
    members = [] if run.workers.here else [(_stage(run, hop, each), each) for each in (first, *later)]
    waiting = {stage.name: each for stage, each in members if run.engine.makes(stage)}
    if len(waiting) < 2 or (trainers := Trainers.of(run)).room() < 2:
        return {}
    jobs = {
        stage: _training(run, hop, each, _write_start(run, hop, each, board.starting)[0])
        for stage, each in waiting.items()
    }
    left = {stage: job for stage, job in jobs.items() if not job.is_done}
    if len(left) < 2:
        return {}
    ended = dict(zip(left, trainers.train([*left.values()], board.side_by_side([*left.values()])), strict=True))
    for stage, end in ended.items():
        if end.error is not None:
            name, failed = _name(hop, waiting[stage]), "its training beside others failed, and is tried again alone"
            run.engine.note(f"{name}: {failed}: {end.error}")
    seconds = time.perf_counter() - began
    return {stage: end.share * seconds for stage, end in ended.items() if waiting[stage] is not first}


def _write_start(run: Run, hop: Hop, planned: PlannedMember, progress: Progress) -> tuple[Path, MeasuredStart | None]:
    """Write the untrained model as a stock folder with float32 weights, for the training's processes to read."""
    target = planned.target
    if planned.role == "random_weights":
        prepared, folder = hop.prepared.to_dict(), starts_of(run, hop).folder / f"{target.id}-random"
        run.workers.call(draw_weights, prepared=prepared, target=target, seed=run.plan.seed, folder=folder)
        return folder, None
    return start_member(run, hop, target, progress)


def starts_of(run: Run, hop: Hop, files: TrainingFiles | None = None) -> Starts:
    """Return the untrained students of a size; each is written by whoever needs it first.

    Args:
        run: The run.
        hop: The size.
        files: What they are trained on; what the size's students are without it.
    """
    needs = [done.entry.digest for done in (run.tokens.done, *hop.needs)]
    folder = run.folder.starts(hop.label) / fingerprint([inputs.of_start(run.plan), needs])
    calibration = run.tokens.file("calibration") if run.plan.repair == "ridge" else None
    return Starts(hop.prepared, files or hop.lessons.files, folder, calibration)


def start_member(run: Run, hop: Hop, target: Architecture, progress: Progress) -> tuple[Path, MeasuredStart]:
    """Write an untrained student of a size, unless a trial has, and return its folder and what it is.

    Args:
        run: The run.
        hop: The size.
        target: The student's shape.
        progress: Told about the tokens of its repair.
    """
    starts = starts_of(run, hop)
    measured = run.workers.call(repair, progress, starts=starts.to_dict(), target=target)
    return starts.of(target), MeasuredStart(**measured)


def repair(starts: Mapping[str, Any], target: Architecture, progress: Progress) -> dict[str, Any]:
    """Do what `Starts.write` does.

    Args:
        starts: `Starts.to_dict`.
        target: The student's shape.
        progress: Told about the tokens of the repair.

    Returns:
        The fields of `MeasuredStart`.
    """
    return asdict(Starts.from_dict(starts).write(target, progress))


def draw_weights(prepared: Mapping[str, str], target: Architecture, seed: int, folder: Path) -> None:
    """Write a model of random float32 weights as a stock folder, unless it is there.

    Args:
        prepared: `PreparedTeacher.to_dict` of the model whose config it has.
        target: Its shape.
        seed: Of the weights.
        folder: Where it goes.
    """
    if not folder.exists():
        with whole_folder(folder) as unfinished:
            student = random_student(PreparedTeacher.from_dict(prepared), target, torch.float32, seed)
            student.save_pretrained(unfinished)
        del student
        release_memory()


def compare(model: Path, held_out: Path, cache: Path, teacher: str) -> float:
    """Return a model's KL to a teacher on held-out text, in nats per token.

    Args:
        model: Its folder.
        held_out: The file of the text.
        cache: What the teacher says over it.
        teacher: The fingerprint of the teacher.
    """
    tokens = PackedTokens.load(held_out)
    return validate(load_for_training(model), tokens, HiddenCache(SignalPlace(cache, teacher, tokens))).kl_nats


def _untrained_kl(run: Run, hop: Hop, start: Path, result: TrainingResult) -> float | None:
    """Return the KL to the first teacher before training; a member is measured against it, whomever it learns from."""
    teacher, held_out = run.teacher.checkpoint, hop.lessons.files.validation
    cache = run.folder.signal(teacher.fingerprint, "validation")
    if held_out.cache == cache:
        return result.curve[0].kl_nats
    kl: float = run.workers.call(
        compare, model=start, held_out=held_out.tokens, cache=cache, teacher=teacher.fingerprint
    )
    return kl


def _lineage(run: Run, hop: Hop, planned: PlannedMember, start: MeasuredStart | None) -> Lineage:
    plan, teacher, source, target = run.plan, run.teacher.checkpoint, hop.source, planned.target
    taken = TakenStart.of(source.checkpoint, target, plan.start_settings)
    if start is not None and start.choice is not None:
        taken = replace(taken, repair=start.choice)
    correction = None
    if plan.correct is not None:
        before = read_lineage(teacher.path).corrected
        correction = {**plan.correct.model_dump(), "teacher": before.fingerprint if before is not None else None}
    return Lineage(
        size=hop.label,
        role=planned.role,
        teacher=Origin(plan.teacher, teacher.fingerprint),
        correction=correction,
        source=Origin(source.name, source.checkpoint.fingerprint),
        architecture=hop.prepared.settled(target).to_dict(),
        source_architecture=source.checkpoint.architecture.to_dict(),
        kept_layers=hop.prepared.order.kept_layers(target.num_hidden_layers),
        start=None if start is None else {**asdict(taken), "merge_heads": plan.merge_heads},
        learning_rate=hop.learning_rate,
        seed=plan.seed,
        dtype=str(stored_dtype(teacher.path)).removeprefix("torch."),
        versions=versions(),
    )


def _curve_row(name: str, size: str, role: Role, point: CurvePoint) -> dict[str, Any]:
    split = "train" if point.learning_rate is not None else "validation"
    return {"model": name, "size": size, "role": role, "split": split, **asdict(point)}
