"""What can be refused before any work starts."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import datasets

from minitron_nas.architecture.rules import layers_that_stay
from minitron_nas.distillation.training.arguments import check_engine, micro_batch, zero_stage
from minitron_nas.distillation.training.lora import require_peft
from minitron_nas.distillation.training.memory import state_bytes
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.errors import DataError, MinitronNasError, PlanError
from minitron_nas.evaluation.latency import LatencyModel
from minitron_nas.execution.choice import check_cluster
from minitron_nas.importance.depth import task_settings
from minitron_nas.importance.depth_modes import free_runs
from minitron_nas.importance.passes import require_whole_model
from minitron_nas.models.outline import Outline
from minitron_nas.pipeline.devices import Devices
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.room import Room, num_finalists
from minitron_nas.pipeline.stages.correct import correction_tokens
from minitron_nas.pipeline.stages.extend import check_extended
from minitron_nas.pipeline.stages.latency import named_latency
from minitron_nas.pipeline.stages.search import costing_of, pool_of, shapes_of
from minitron_nas.pipeline.stages.tokenize import held_out_sources
from minitron_nas.pipeline.stages.train import layer_counts
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.settings import about_bytes
from minitron_nas.space.enumerate import Enumeration
from minitron_nas.space.size import Size
from minitron_nas.storage.atomic import require_free_bytes
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.text.sources import Data, absolute_name, open_sources, source_files
from minitron_nas.text.unpacked import unpacked_bytes


def preflight(
    plan: FamilyPlan,
    teacher: Outline,
    data: Data | None,
    folder: RunFolder,
    devices: Devices,
    work: Path,
    latency: LatencyModel | None = None,
) -> dict[Size, Enumeration]:
    """Refuse a plan that cannot work, with all of its faults, and return the shapes of each size.

    Every size is enumerated from the teacher. A later size is pruned from the student before it, so
    this finds what is unreachable already, not all of what will be. Of sizes that are told in speed, shapes are known
    only with a latency model.

    Args:
        plan: The plan.
        teacher: The first teacher.
        data: The text, if it is there.
        folder: Where the run will lie.
        devices: What it will run on; of devices elsewhere nothing is asked but their memory.
        work: A folder for what is tried.
        latency: As the run measured it; without it the one that the plan names counts.

    Raises:
        PlanError: If DeepSpeed or a tracker cannot be used as asked, the batch does not divide, the teacher knows fewer
            positions than a sequence has, layers are to be measured on a teacher that does not fit into memory,
            the teacher cannot be corrected as asked, lm-eval does not know a task or cannot build it, or the Ray
            cluster does not answer or has no room for a trial, or no Ray can be started, or a device's memory is too
            small for a trial, or devices elsewhere are fewer than a trial takes; or if there are several faults.
        MachineError: If Ray's folder cannot be written to.
        LatencyError: If the plan's latency model cannot be used for this teacher.
        SpaceError: If a size is not below the teacher's, or no shape is within tolerance or keeps to the constraints.
        InvalidArchitectureError: If a protected layer does not exist, or protected layers leave no block of
            the size that has to go.
        DiskSpaceError: If the run will not fit, or the text that is unpacked.
        DataError: If a file is missing or empty, or there is no such split, or held-out text is trained on.
    """
    faults: list[MinitronNasError] = []
    pools: dict[Size, Enumeration] = {}
    checks: list[Callable[[], object]] = [
        lambda: _check_text(plan, data),
        lambda: check_engine(plan.distillation),
        lambda: teacher.require_length(plan.text.sequence_length),
        lambda: _check_batch(plan),
        lambda: _check_trial(plan, devices),
        lambda: _check_correction(plan),
        lambda: check_tasks(plan),
        lambda: check_extended(plan),
    ]
    for check in checks:
        with _kept(faults):
            check()
    with _kept(faults):
        latency = latency or named_latency(plan, teacher.architecture)
    costing = costing_of(plan, teacher.architecture, teacher.layout, latency, teacher.architecture)
    known = [size for size in plan.descending_sizes if costing.can_measure(size)]
    with _kept(faults):
        PruningOrder.check_layers(teacher.architecture, plan.space.protected_layers)
        if known:
            _check_depth(plan, teacher, layer_counts(plan, costing, known[0]), devices)
    for size in known:
        with _kept(faults):
            pools[size] = shapes_of(plan, size, costing)
            pool_of(plan, pools[size], costing)
            _check_memory(plan, size, pools[size], devices)
    if devices.are_here:
        with _kept(faults):
            _check_disk(plan, teacher, data, folder, devices, pools)
        if plan.runner.kind == "ray":
            with _kept(faults):
                check_cluster(plan.runner, work)
    distinct = {str(fault): fault for fault in faults}
    if len(distinct) == 1:
        raise faults[0]
    if distinct:
        raise PlanError(f"the plan has {len(distinct)} faults: {'; '.join(distinct)}")
    return pools


@contextmanager
def _kept(faults: list[MinitronNasError]) -> Iterator[None]:
    """Keep a fault, so that others are found too."""
    try:
        yield
    except MinitronNasError as fault:
        faults.append(fault)


def _check_text(plan: FamilyPlan, data: Data | None) -> None:
    trained = [source_files(source) for source in open_sources(data, plan.text)] if data is not None else []
    for source in held_out_sources(plan):
        absolute_name(str(source.data))  # which must be there
        both = {file.resolve() for file in source_files(source)} & {
            file.resolve() for files in trained for file in files
        }
        if both:
            raise DataError(
                f"{source.name} reads {min(both)}, which is trained on too; held-out text must be other text: name "
                "another file, or another split"
            )


def _check_disk(
    plan: FamilyPlan,
    teacher: Outline,
    data: Data | None,
    folder: RunFolder,
    devices: Devices,
    pools: Mapping[Size, Enumeration],
) -> None:
    room = Room.of(plan, teacher, pools, plan.distillation.tokens or 0, devices)
    purpose = f"this run ({num_finalists(plan, pools)} finalists and {len(plan.sizes)} students)"
    require_free_bytes(folder.path, max(room.total - folder.written_bytes(), 0), purpose)
    if data is not None and not folder.tokens.exists():
        cache, unpacked = Path(datasets.config.HF_DATASETS_CACHE), unpacked_bytes(data, plan.text)
        require_free_bytes(cache, unpacked, "text that is unpacked while it is read", "set HF_DATASETS_CACHE")


def _check_memory(plan: FamilyPlan, size: Size, pool: Enumeration, devices: Devices) -> None:
    """Refuse a size whose smallest candidate cannot be trained in a trial on the devices."""
    if plan.runner.on_cluster and devices.are_here:
        return
    num_devices = devices.of_a_trial(plan.runner)
    stage = zero_stage(plan.distillation) if num_devices > 1 else 0
    least = int(pool.candidates.num_parameters.min())
    needed, there = sum(state_bytes(least, stage, num_devices)), devices.memory_bytes
    if needed > there:
        raise PlanError(
            f"a trial of {size} takes at least {about_bytes(needed)} on each device for float32 weights, "
            f"gradients and Adam's moments, and {devices.name} has {about_bytes(there)}; choose smaller sizes, or "
            "shard each trial over GPUs with distillation.deepspeed=zero-3 and runner.gpus_per_trial"
        )


def _check_batch(plan: FamilyPlan) -> None:
    """Refuse a batch that does not divide; of GPUs that are chosen for it later, it need only divide over one."""
    if plan.distillation.tokens is not None:
        schedule = Schedule.resolve(plan.distillation, plan.distillation.tokens, plan.text.sequence_length)
        micro_batch(plan.distillation, schedule, plan.runner.num_processes or 1)


def _check_trial(plan: FamilyPlan, devices: Devices) -> None:
    """Refuse trials that take more devices than there are elsewhere; those here are asked by their runner."""
    wanted = plan.runner.gpus_per_trial or 0
    if plan.runner.kind == "ray" and not devices.are_here and wanted > devices.number:
        raise PlanError(
            f"a trial asks for {wanted:g} GPUs, and the plan is held against {devices.number}; lower "
            "runner.gpus_per_trial, or name more --devices"
        )


def _check_correction(plan: FamilyPlan) -> None:
    if plan.correct is not None and plan.correct.weights == "lora":
        require_peft()
    if plan.correct is not None and plan.distillation.tokens is not None:
        correction_tokens(plan.correct, plan.distillation.tokens)


def check_tasks(plan: FamilyPlan) -> None:
    """Refuse tasks that lm-eval cannot do here.

    Raises:
        PlanError: Names one.
    """
    depth = plan.importance.depth
    wanted = {"evaluation.tasks": plan.evaluation} if plan.evaluation.tasks else {}
    if depth.criterion == "task":
        wanted["importance.depth.task"] = task_settings(depth)
    for setting, settings in wanted.items():
        from minitron_nas.evaluation.lm_eval import Benchmarks  # deferred: importing lm_eval takes seconds

        Benchmarks(settings, setting).require_data()


def _check_depth(plan: FamilyPlan, teacher: Outline, counts: Collection[int], devices: Devices) -> None:
    num_layers = teacher.architecture.num_hidden_layers
    protected = layers_that_stay(plan.space.protected_layers, teacher.architecture, teacher.layout)
    depth = plan.importance.depth
    here = devices.are_here and not plan.runner.on_cluster
    if here and depth.needs_model and any(count < num_layers for count in counts):
        require_whole_model(teacher, depth)
    if depth.mode == "block":
        for count in sorted({*counts} - {num_layers}):
            free_runs(num_layers, protected, num_layers - count, teacher.architecture.layer_kinds)
