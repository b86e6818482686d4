"""The stage that measures: every member beside the teacher and its baselines."""

from collections.abc import Mapping
from math import exp
from pathlib import Path
from typing import Any

from minitron_nas.architecture.costs import count_embedding_parameters
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.signals.hidden_cache import HiddenCache
from minitron_nas.evaluation.speed import measure_speed
from minitron_nas.execution.device import release_memory
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.models.loading import load_for_inference
from minitron_nas.pipeline.engine import Engine
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.stages.tokenize import Tokens
from minitron_nas.progress import Progress
from minitron_nas.storage.schemas import BENCHMARKS, EVALUATIONS
from minitron_nas.storage.tables import replace_rows

TEACHER = {"name": "teacher", "role": "teacher"}


def evaluate_member(
    engine: Engine, plan: FamilyPlan, told: Mapping[str, Any], size: str | None, teacher: Checkpoint, tokens: Tokens
) -> None:
    """Measure one model and write its rows of `evaluations.parquet` and `benchmarks.parquet`.

    Args:
        engine: Runs the stage.
        plan: Says what to measure.
        told: What `train_member` returned, or `TEACHER`.
        size: The label of the size; None for the teacher.
        teacher: The first teacher, against whose states the KL is taken.
        tokens: The run's tokens.
    """
    name = told["name"]
    checkpoint = teacher if size is None else open_checkpoint(engine.folder.path / told["path"])
    cache = engine.folder.signal(teacher.fingerprint, "validation")

    def action(progress: Progress) -> None:
        held_out = tokens.part("validation")
        signal = HiddenCache(cache, teacher.fingerprint, held_out)
        model = load_for_inference(checkpoint.path)
        losses = validate(model, held_out, signal, progress=progress)
        del model
        release_memory()
        speed = measure_speed(checkpoint.path, plan.evaluation)
        proof = told.get("proof", {})
        row = {
            "model": name,
            "size": size,
            "role": told["role"],
            "path": told.get("path", _path_in(engine.folder.path, teacher.path)),
            **checkpoint.architecture.shape(),
            "num_parameters": checkpoint.num_parameters,
            "num_embedding_parameters": count_embedding_parameters(checkpoint.architecture, checkpoint.layout),
            "tokens_trained": told.get("tokens_trained"),
            "untrained_kl_nats": told.get("untrained_kl_nats"),
            "kl_nats": losses.kl_nats,
            "loss_nats": losses.loss_nats,
            "perplexity": exp(losses.loss_nats),
            "prefill_tokens_per_second": speed.prefill_tokens_per_second,
            "decode_tokens_per_second": speed.decode_tokens_per_second,
            "peak_memory_bytes": speed.peak_memory_bytes,
            "proof_max_abs_difference": proof.get("max_abs_difference"),
        }
        replace_rows(engine.folder.path, EVALUATIONS, {"model": name}, [row])
        if plan.evaluation.tasks:
            _benchmark(engine, plan, name, checkpoint.path)

    inputs = {
        "model": checkpoint.fingerprint,
        "told": dict(told),
        "teacher": teacher.fingerprint,
        "tokens": tokens.fingerprint,
        "evaluation": plan.evaluation.model_dump(),
    }
    outputs = [engine.folder.path / EVALUATIONS.file_name]
    engine.stage(f"{name} evaluate", "loss, KL, speed and memory", inputs, outputs, action)


def _path_in(run: Path, path: Path) -> str:
    return str(path.relative_to(run) if path.is_relative_to(run) else path)


def _benchmark(engine: Engine, plan: FamilyPlan, name: str, path: Path) -> None:
    from minitron_nas.evaluation.lm_eval import run_benchmarks  # deferred: importing lm_eval takes seconds

    rows = [{"model": name, **row} for row in run_benchmarks(path, plan.evaluation, plan.seed)]
    release_memory()
    replace_rows(engine.folder.path, BENCHMARKS, {"model": name}, rows)
