"""The stages that train: a size's student, and the baselines it is held against."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from minitron_nas.architecture.costs import count_parameters
from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.job import TrainingFiles, TrainingJob
from minitron_nas.distillation.launch import train
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.settings import HOW_TO_TRAIN
from minitron_nas.distillation.signals.hidden_cache import HiddenCache
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.distillation.training.trainer import CurvePoint
from minitron_nas.execution.device import release_memory
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.loading import load_for_training
from minitron_nas.pipeline.engine import Engine
from minitron_nas.pipeline.hop import Hop
from minitron_nas.pipeline.lineage import versions
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.stages.tokenize import Tokens
from minitron_nas.progress import Progress
from minitron_nas.pruning.export import LINEAGE, export_student, proof_prompt, stored_dtype
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.refit import repair_student
from minitron_nas.pruning.start import TakenStart
from minitron_nas.pruning.student import build_student, random_student
from minitron_nas.storage.atomic import read_json, whole_folder
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.storage.schemas import CURVES
from minitron_nas.storage.tables import replace_rows
from minitron_nas.text.tokens import PackedTokens

Role = Literal["student", "depth_baseline", "random_baseline"]


def depth_only_shape(source: Architecture, hop: Hop, protected_layers: Sequence[int]) -> Architecture:
    """Return the source with only unprotected layers dropped, as near to the size as whole layers allow."""
    fewest = max(len({layer % source.num_hidden_layers for layer in protected_layers}), 1)
    fewest = min(fewest, source.num_hidden_layers - 1)
    shapes = [replace(source, num_hidden_layers=layers) for layers in range(fewest, source.num_hidden_layers)]
    return min(shapes, key=lambda shape: abs(count_parameters(shape, hop.source.layout) - hop.size))


def layer_counts(plan: FamilyPlan, hop: Hop) -> set[int]:
    """Return the numbers of layers that candidates of the plan's space have, and the depth-only baseline."""
    source, protected = hop.source.architecture, plan.space.protected_layers
    num_layers = source.num_hidden_layers
    least = max(len({layer % num_layers for layer in protected}), 1)
    counts = {size for size in plan.space.axes.sizes("num_hidden_layers", source) if least <= size <= num_layers}
    return counts | {depth_only_shape(source, hop, protected).num_hidden_layers} if plan.baselines else counts


def train_member(
    engine: Engine,
    plan: FamilyPlan,
    hop: Hop,
    role: Role,
    shape: Architecture,
    prepared: PreparedTeacher,
    teacher: Checkpoint,
    tokens: Tokens,
    files: TrainingFiles,
) -> dict[str, Any]:
    """Distil one model on the run's tokens, export it with its proof, and return what to tell of it.

    Returns:
        `name`, `role`, `path` (relative to the run folder), `tokens_trained`, `untrained_kl_nats`,
        `max_abs_difference` and `tolerance` of the proof.
    """
    name = {"student": "", "depth_baseline": "-depth", "random_baseline": "-random"}[role]
    name = f"{hop.label}{name}"
    folder = engine.folder.student(name) if role == "student" else engine.folder.baseline(name)

    def action(progress: Progress) -> dict[str, Any]:
        checkpoints = engine.folder.checkpoints(name)
        start = checkpoints / f"start-{fingerprint(inputs)}"
        if not start.exists():
            _write_start(engine, plan, role, shape, prepared, tokens, start, progress)
        schedule = Schedule.resolve(plan.distillation, tokens.distillation_tokens, plan.text.sequence_length)
        job = TrainingJob(start, files, plan.distillation, schedule, checkpoints, plan.seed, checkpoints / "training")
        model, result = train(job, plan.runner, progress)
        validation = PackedTokens.load(files.validation_tokens)
        untrained = result.curve[0].kl_nats
        # A member is measured against the first teacher, whomever it learns from.
        cache = engine.folder.signal(teacher.fingerprint, "validation")
        if files.validation_cache != cache:
            signal = HiddenCache(cache, teacher.fingerprint, validation)
            untrained = validate(load_for_training(start), validation, signal).kl_nats
        rows = [_curve_row(name, hop.label, role, point) for point in result.curve]
        replace_rows(engine.folder.path, CURVES, {"model": name}, rows)
        lineage = _lineage(plan, hop, shape, prepared, teacher, schedule, role)
        prompt = proof_prompt(validation)
        proof = export_student(model, hop.source.path, folder, stored_dtype(teacher.path), prompt, lineage)
        del model, result
        release_memory()
        return {
            "name": name,
            "role": role,
            "path": str(folder.relative_to(engine.folder.path)),
            "tokens_trained": schedule.num_tokens,
            "untrained_kl_nats": untrained,
            "proof": asdict(proof),
        }

    inputs = {
        "source": hop.source.fingerprint,
        "kd_teacher": (teacher if plan.kd_teacher == "first" else hop.source).fingerprint,
        "shape": shape.to_dict(),
        "role": role,
        "tokens": tokens.fingerprint,
        "distillation": plan.distillation.model_dump(exclude=set(HOW_TO_TRAIN)),
        "seed": plan.seed,
        "protected": plan.space.protected_layers,
        "importance": plan.importance.model_dump(),
        "start": [plan.start, plan.repair, plan.merge_heads],
    }
    titles = {
        "student": f"full distillation of {shape.id}",
        "depth_baseline": f"baseline: depth only, {shape.id}",
        "random_baseline": f"baseline: the same shape from random weights, {shape.id}",
    }
    told: dict[str, Any] = engine.stage(f"{name} distil", titles[role], inputs, [folder / "config.json"], action)
    shutil.rmtree(engine.folder.checkpoints(name), ignore_errors=True)
    return told


def _write_start(
    engine: Engine,
    plan: FamilyPlan,
    role: Role,
    shape: Architecture,
    prepared: PreparedTeacher,
    tokens: Tokens,
    folder: Path,
    progress: Progress,
) -> None:
    """Write the untrained model as a stock folder with float32 weights, for the training's processes to read."""
    if role == "random_baseline":
        model = random_student(prepared, shape, torch.float32, plan.seed)
    else:
        with TemporaryDirectory(dir=engine.folder.path) as work:
            repaired = {}
            if plan.repair == "ridge":
                calibration = partial(tokens.part, "calibration")
                repaired = repair_student(prepared, shape, calibration, Path(work), progress)
            model = build_student(prepared, shape, torch.float32, repaired)
    with whole_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
    del model
    release_memory()


def _lineage(
    plan: FamilyPlan,
    hop: Hop,
    shape: Architecture,
    prepared: PreparedTeacher,
    teacher: Checkpoint,
    schedule: Schedule,
    role: Role,
) -> dict[str, Any]:
    taken = TakenStart.of(hop.source, shape, plan.start, plan.repair)
    start = {**asdict(taken), "merge_heads": plan.merge_heads}
    return {
        "size": hop.label,
        "role": role,
        "teacher": {"source": plan.teacher, "fingerprint": teacher.fingerprint},
        "correction": _correction(plan, teacher),
        "source": {"name": hop.source_name, "fingerprint": hop.source.fingerprint},
        "architecture": shape.to_dict(),
        "source_architecture": hop.source.architecture.to_dict(),
        "kept_layers": prepared.order.kept_layers(shape.num_hidden_layers),
        "start": None if role == "random_baseline" else start,
        "tokens_trained": schedule.num_tokens,
        "learning_rate": plan.distillation.learning_rate,
        "seed": plan.seed,
        "dtype": str(stored_dtype(teacher.path)).removeprefix("torch."),
        "versions": versions(),
    }


def _correction(plan: FamilyPlan, teacher: Checkpoint) -> dict[str, Any] | None:
    """Return how the teacher was corrected, and what it was before."""
    if plan.correct is None:
        return None
    return {**plan.correct.model_dump(), "teacher": read_json(teacher.path / LINEAGE)["corrected"]["fingerprint"]}


def _curve_row(name: str, size: str, role: Role, point: CurvePoint) -> dict[str, Any]:
    split = "train" if point.learning_rate is not None else "validation"
    return {"model": name, "size": size, "role": role, "split": split, **asdict(point)}
