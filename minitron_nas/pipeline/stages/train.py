"""The stages that train: a size's student, and the baselines it is held against."""

import shutil
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.job import TrainingJob
from minitron_nas.distillation.launch import train
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.signals.hidden_cache import HiddenCache
from minitron_nas.distillation.training.curve import CurvePoint
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.execution.device import release_memory
from minitron_nas.models.loading import load_for_training
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.engine import Done, Left, Stage
from minitron_nas.pipeline.hop import Hop
from minitron_nas.pipeline.member import Role, TrainedMember, member_name
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.run import Run
from minitron_nas.pipeline.versions import versions
from minitron_nas.progress import Progress
from minitron_nas.pruning.export import export_student, proof_prompt, stored_dtype
from minitron_nas.pruning.start import TakenStart
from minitron_nas.pruning.student import random_student
from minitron_nas.search.costing import Costing
from minitron_nas.search.start import MeasuredStart, write_start
from minitron_nas.space.size import Size
from minitron_nas.storage.atomic import whole_folder
from minitron_nas.storage.lineage import Lineage, Origin, read_lineage
from minitron_nas.storage.schemas import CURVES

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
    fewest = max(len({layer % source.num_hidden_layers for layer in protected}), 1)
    layers = np.arange(min(fewest, source.num_hidden_layers - 1), source.num_hidden_layers)
    whole = {name: np.full_like(layers, getattr(source, name)) for name in costing.layout.shape_fields()}
    values = costing.measure(size)({**whole, "num_hidden_layers": layers})
    return replace(source, num_hidden_layers=int(layers[np.abs(values - size.value).argmin()]))


def layer_counts(plan: FamilyPlan, costing: Costing, size: Size) -> set[int]:
    """Return the numbers of layers that candidates of the plan's space have, and the depth-only baseline if wanted.

    Args:
        plan: Names the space.
        costing: Says which shape is pruned, and what others have in the unit of the size.
        size: How large students are to be.
    """
    protected, num_layers = plan.space.protected_layers, costing.source.num_hidden_layers
    least = max(len({layer % num_layers for layer in protected}), 1)
    steps = plan.space.axes.sizes("num_hidden_layers", costing.source)
    counts = {step for step in steps if least <= step <= num_layers}
    if "depth_only" not in plan.baselines:
        return counts
    return counts | {depth_only_target(costing, size, protected).num_hidden_layers}


def train_member(run: Run, hop: Hop, role: Role, target: Architecture, number: int = 1) -> tuple[TrainedMember, Done]:
    """Distil one model on the run's tokens, export it with its proof, and return it and the stage that did it.

    Args:
        run: The run.
        hop: The size.
        role: What the model is.
        target: Its shape.
        number: Which of the size's students it is, from 1.
    """
    plan, name = run.plan, member_name(hop.label, role, number)
    folder = run.folder.student(name) if role == "student" else run.folder.baseline(name)
    checkpoints = run.folder.checkpoints(name)

    def action(progress: Progress) -> Left:
        start = checkpoints / f"start-{stage.fingerprint}"
        measured = _write_start(run, hop, role, target, start, progress)
        settings = plan.distillation.at_rate(hop.learning_rate)
        schedule = Schedule.resolve(settings, run.tokens.distillation_tokens, plan.text.sequence_length)
        files = hop.lessons.files
        job = TrainingJob(start, files, settings, schedule, checkpoints, plan.seed, checkpoints / "training")
        model, result = train(job, plan.runner, progress)
        untrained = _untrained_kl(run, hop, start, result.curve[0])
        rows = [_curve_row(name, hop.label, role, point) for point in result.curve]
        if result.harm is not None:
            run.engine.note(f"{name}: {result.harm}")
        exported = result.best.tokens
        came = _lineage(run, hop, role, target, measured)
        lineage = replace(came, tokens_trained=schedule.num_tokens, exported_tokens=exported)
        prompt = proof_prompt(files.validation.open())
        dtype = stored_dtype(run.teacher.checkpoint.path)
        proof = export_student(model, hop.source.checkpoint.path, folder, dtype, prompt, lineage)
        del model, result
        release_memory()
        path = str(folder.relative_to(run.folder.path))
        member = TrainedMember(name, role, hop.label, path, schedule.num_tokens, exported, untrained, proof)
        return Left(member.to_dict(), rows=((CURVES, rows),))

    stage = Stage(
        f"{name} distil",
        f"{_TITLES[role]} {target.id}",
        inputs.of_training(plan, role, target, hop.learning_rate),
        needs=(run.tokens.done, *hop.needs),
        outputs=[folder],
        costly=True,
    )
    done = run.engine.run(stage, action)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return TrainedMember.from_dict(done.result), done


def _write_start(
    run: Run, hop: Hop, role: Role, target: Architecture, folder: Path, progress: Progress
) -> MeasuredStart | None:
    """Write the untrained model as a stock folder with float32 weights, for the training's processes to read."""
    if role != "random_weights":
        calibration = run.tokens.file("calibration") if run.plan.repair == "ridge" else None
        return write_start(hop.prepared, target, calibration, hop.lessons.files, folder, progress)
    if not folder.exists():
        with whole_folder(folder) as unfinished:
            random_student(hop.prepared, target, torch.float32, run.plan.seed).save_pretrained(unfinished)
        release_memory()
    return None


def _untrained_kl(run: Run, hop: Hop, start: Path, first: CurvePoint) -> float | None:
    """Return the KL to the first teacher before training; a member is measured against it, whomever it learns from."""
    teacher, held_out = run.teacher.checkpoint, hop.lessons.files.validation
    cache = run.folder.signal(teacher.fingerprint, "validation")
    if held_out.cache == cache:
        return first.kl_nats
    tokens = held_out.open()
    return validate(load_for_training(start), tokens, HiddenCache(cache, teacher.fingerprint, tokens)).kl_nats


def _lineage(run: Run, hop: Hop, role: Role, target: Architecture, start: MeasuredStart | None) -> Lineage:
    plan, teacher, source = run.plan, run.teacher.checkpoint, hop.source
    taken = TakenStart.of(source.checkpoint, target, plan.start_settings)
    if start is not None and start.choice is not None:
        taken = replace(taken, repair=start.choice)
    correction = None
    if plan.correct is not None:
        before = read_lineage(teacher.path).corrected
        correction = {**plan.correct.model_dump(), "teacher": before.fingerprint if before is not None else None}
    return Lineage(
        size=hop.label,
        role=role,
        teacher=Origin(plan.teacher, teacher.fingerprint),
        correction=correction,
        source=Origin(source.name, source.checkpoint.fingerprint),
        architecture=target.to_dict(),
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
