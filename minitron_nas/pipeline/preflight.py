"""What can be refused before any work starts."""

import torch

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.top_k_cache import TOP_K_BYTES
from minitron_nas.distillation.training.arguments import check_engine, micro_batch, zero_stage
from minitron_nas.distillation.training.lora import require_peft
from minitron_nas.distillation.training.memory import state_bytes
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.errors import PlanError
from minitron_nas.execution.choice import check_cluster
from minitron_nas.execution.device import compute_dtype, pick_device, total_bytes
from minitron_nas.importance.depth import task_settings
from minitron_nas.importance.depth_modes import free_runs
from minitron_nas.importance.passes import require_whole_model
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.stages.correct import correction_tokens
from minitron_nas.pipeline.stages.train import layer_counts
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.start import moments_bytes
from minitron_nas.settings import format_count
from minitron_nas.space.enumerate import enumerate_candidates
from minitron_nas.storage.atomic import require_free_bytes
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.storage.weights import read_headers
from minitron_nas.text.tokens import token_dtype

_TRAINING_BYTES_PER_PARAMETER = 12
"""A checkpoint holds float32 weights and Adam's two moments."""

_START_BYTES_PER_PARAMETER = 4
"""A distillation begins with float32 weights in a file; a full one also ends so, and keeps its best on the way, at most
twice."""

_UNIT_BYTES = 24
"""A score as a number and as a row, and a place in the order."""

_COMPANIONS = {".json", ".jinja", ".model", ".txt", ".md"}

_REPORT_BYTES = 5_000_000
"""Most of it draws the figures; a new one is written beside the old."""


def preflight(plan: FamilyPlan, teacher: Checkpoint, folder: RunFolder) -> None:
    """Refuse a plan that cannot work.

    Every size is enumerated from the teacher. A later size is pruned from the student before it, so
    this finds what is unreachable already, not all of what will be.

    Raises:
        PlanError: If DeepSpeed or a tracker cannot be used as asked, the batch does not divide, the teacher knows fewer
            positions than a sequence has, layers are to be measured on a teacher that does not fit into memory,
            the teacher cannot be corrected as asked, lm-eval does not know a task or cannot build it, or the Ray
            cluster does not answer or has no room for a trial, or no Ray can be started, or a device's memory is too
            small for a trial.
        MachineError: If Ray's folder cannot be written to.
        SpaceError: If a size is not below the teacher's, or no shape is within tolerance.
        InvalidArchitectureError: If a protected layer does not exist, or protected layers leave no block of
            the size that has to go.
        DiskSpaceError: If the run will not fit.
    """
    check_engine(plan.distillation)
    teacher.require_length(plan.text.sequence_length)
    _check_batch(plan)
    PruningOrder.check_layers(teacher.architecture, plan.space.protected_layers)
    _check_depth(plan, teacher)
    _check_correction(plan)
    check_tasks(plan)
    if plan.runner.kind == "ray":
        check_cluster(plan.runner, folder.work / "ray")
    for size in plan.descending_sizes:
        found = enumerate_candidates(plan.space, size, teacher.architecture, teacher.layout)
        _check_memory(plan, size, min(candidate.num_parameters for candidate in found.candidates))
    weights = sum(header.num_bytes for header in read_headers(teacher.path).values())
    sizes = plan.descending_sizes
    stored = weights / teacher.num_parameters
    models = sum(sizes) * stored * (3 if plan.baselines else 1) + (weights if plan.correct is not None else 0)
    trained = sizes[0] if plan.correct is None else teacher.num_parameters
    checkpoints = trained * 2 * (_TRAINING_BYTES_PER_PARAMETER + 2 * _START_BYTES_PER_PARAMETER)
    trials = plan.search.num_finalists * sizes[0] * (_TRAINING_BYTES_PER_PARAMETER + _START_BYTES_PER_PARAMETER)
    moments = _moments_bytes(plan, teacher)
    cache = (plan.distillation.tokens or 0) * _cached_token_bytes(plan.distillation, teacher)
    beside = _tokens_bytes(plan, teacher) + _rankings_bytes(plan, teacher) + _companions_bytes(plan, teacher)
    needed = int(models + max(checkpoints, trials, _REPORT_BYTES) + _REPORT_BYTES + moments + cache + beside)
    purpose = f"this run ({plan.search.num_finalists} trials and {len(sizes)} students)"
    require_free_bytes(folder.path, max(needed - folder.written_bytes(), 0), purpose)


def _cached_token_bytes(settings: DistillationSettings, teacher: Checkpoint) -> int:
    """Return the bytes of what is kept of the teacher's words on one token of training text."""
    shape = teacher.architecture
    if not settings.caches_training:
        return 0
    if settings.cached_top_k is not None:
        return min(settings.cached_top_k, shape.vocab_size) * TOP_K_BYTES
    return shape.hidden_size * compute_dtype(pick_device()).itemsize


def _moments_bytes(plan: FamilyPlan, teacher: Checkpoint) -> float:
    """Return the bytes of the second moments of all models that are pruned; they grow with a model's size."""
    pruned = [teacher.num_parameters, *plan.descending_sizes[:-1]]
    whole = moments_bytes(teacher, "projections") if plan.repair == "ridge" else 0
    return whole * sum(pruned) / teacher.num_parameters


def _tokens_bytes(plan: FamilyPlan, teacher: Checkpoint) -> int:
    """Return the bytes of the run's tokens, and of the states that are kept of the teacher's over held-out text."""
    text, shape = plan.text, teacher.architecture
    token_bytes = token_dtype(shape.vocab_size).itemsize + token_dtype(text.sequence_length).itemsize
    held_out = text.validation_samples * text.sequence_length
    tokens = (plan.distillation.tokens or 0) + text.calibration_samples * text.sequence_length + held_out
    return tokens * token_bytes + held_out * shape.hidden_size * compute_dtype(pick_device()).itemsize


def _rankings_bytes(plan: FamilyPlan, teacher: Checkpoint) -> int:
    """Return the bytes of what is known of each model that is pruned: its text, scores, order and rotation."""
    shape, text = teacher.architecture, plan.text
    token_bytes = token_dtype(shape.vocab_size).itemsize + token_dtype(text.sequence_length).itemsize
    units = shape.hidden_size + shape.num_hidden_layers * (shape.intermediate_size + shape.num_attention_heads)
    rotation = 8 * shape.hidden_size**2 if plan.start == "rotate" else 0
    each = text.calibration_samples * text.sequence_length * token_bytes + units * _UNIT_BYTES + rotation
    return len(plan.sizes) * each


def _companions_bytes(plan: FamilyPlan, teacher: Checkpoint) -> int:
    """Return the bytes of what lies beside the weights of each member: tokenizer, templates, terms."""
    small = sum(file.stat().st_size for file in teacher.path.glob("*") if file.suffix in _COMPANIONS)
    return len(plan.sizes) * (3 if plan.baselines else 1) * small


def _check_memory(plan: FamilyPlan, size: int, num_parameters: int) -> None:
    """Refuse a size whose smallest candidate cannot be trained in a trial on this machine's devices."""
    if plan.runner.address is not None:
        return
    device, num_devices = pick_device(), _devices_of_a_trial(plan)
    stage = zero_stage(plan.distillation) if num_devices > 1 else 0
    needed, there = sum(state_bytes(num_parameters, stage, num_devices)), total_bytes(device)
    if needed > there:
        raise PlanError(
            f"a trial of {format_count(size)} takes at least {needed / 1e9:.3g} GB on each device for float32 weights, "
            f"gradients and Adam's moments, and {device} has {there / 1e9:.3g} GB; choose smaller sizes, or shard each "
            "trial over GPUs with distillation.deepspeed=zero-3 and runner.gpus_per_trial"
        )


def _devices_of_a_trial(plan: FamilyPlan) -> int:
    seen = torch.cuda.device_count()
    return max(min(seen, int(plan.runner.gpus_per_trial or 1)) if plan.runner.kind == "ray" else seen, 1)


def _check_batch(plan: FamilyPlan) -> None:
    """Refuse a batch that does not divide; of GPUs that are chosen for it later, it need only divide over one."""
    if plan.distillation.tokens is not None:
        schedule = Schedule.resolve(plan.distillation, plan.distillation.tokens, plan.text.sequence_length)
        micro_batch(plan.distillation, schedule, plan.runner.num_processes or 1)


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


def _check_depth(plan: FamilyPlan, teacher: Checkpoint) -> None:
    num_layers = teacher.architecture.num_hidden_layers
    protected = {layer % num_layers for layer in plan.space.protected_layers}
    counts = layer_counts(plan, teacher.architecture, teacher.layout, plan.descending_sizes[0])
    depth = plan.importance.depth
    if depth.needs_model and any(count < num_layers for count in counts):
        require_whole_model(teacher, depth)
    if depth.mode == "block":
        for count in sorted(counts - {num_layers}):
            free_runs(num_layers, protected, num_layers - count)
