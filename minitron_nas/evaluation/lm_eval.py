"""Benchmark scores through lm-eval; the only module that imports it."""

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from minitron_nas.distillation.signals import load_for_inference
from minitron_nas.errors import PlanError
from minitron_nas.evaluation.settings import EvaluationSettings

_BOOTSTRAP_DRAWS = 1000  # for the few metrics without a formula; 0 would leave out every standard error


def run_benchmarks(path: Path, settings: EvaluationSettings, seed: int) -> list[dict[str, Any]]:
    """Run the settings' tasks on a stock folder.

    Returns:
        Rows of `benchmarks.parquet` without the model's name.

    Raises:
        PlanError: If lm-eval knows no task of a name.
    """
    manager = TaskManager(include_path=settings.include_path)
    unknown = [task for task in settings.tasks if task not in manager.all_tasks]
    if unknown:
        raise PlanError(
            f"evaluation.tasks: lm-eval knows no task {', '.join(unknown)}; list its tasks with `lm-eval ls tasks`, or "
            "name the folder of your own with evaluation.include_path"
        )
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # else the bootstrap forks this process, model and all
    model = load_for_inference(path)
    with redirect_stdout(sys.stderr):  # lm-eval prints what it does
        results = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=str(path), batch_size=1),
            tasks=list(settings.tasks),
            task_manager=manager,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            bootstrap_iters=_BOOTSTRAP_DRAWS,
            log_samples=False,
        )
    return [row for task in results["results"] for row in _rows(task, results, settings.limit)]


def _rows(task: str, results: dict[str, Any], limit: int | None) -> list[dict[str, Any]]:
    rows = []
    for metric, value in results["results"][task].items():
        if not isinstance(value, int | float) or "_stderr" in metric or "," not in metric:
            continue
        name, filter_name = metric.split(",", 1)
        error = results["results"][task].get(f"{name}_stderr,{filter_name}")
        rows.append(
            {
                "task": task,
                "task_version": str(results["versions"].get(task)),
                "metric": metric,
                "value": float(value),
                "standard_error": float(error) if isinstance(error, int | float) else None,
                "num_fewshot": results["n-shot"].get(task),
                "limit": limit,
            }
        )
    return rows
