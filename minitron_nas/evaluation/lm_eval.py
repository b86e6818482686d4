"""Benchmark scores through lm-eval; the only module that imports it."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from minitron_nas.errors import PlanError
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.loading import load_for_inference
from minitron_nas.text.tokenization import leading_bos

_BOOTSTRAP_DRAWS = 1000  # for the few metrics without a formula; 0 would leave out every standard error
_LONGEST_REASON = 300  # characters; the errors of a hub can have pages


class WindowedModel(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """lm-eval's model, whose rolling windows all begin with BOS where the tokenizer begins a text with it.

    lm-eval puts a BOS before the first window only, and there beside the tokenizer's own, whose probability it counts.
    """

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, window by window.

        Args:
            requests: Their only argument is a text.
            disable_tqdm: Whether to show no progress.
        """
        bos = leading_bos(self.tokenizer)
        if bos is None:
            found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm)
            return found
        totals = []
        for request in requests:
            (text,) = request.args
            tokens = self.tok_encode(text)
            tokens = tokens[1:] if tokens[:1] == [bos] else tokens
            windows = [(None, *window) for window in _windows(tokens, bos, self.max_length)]
            scored = self._loglikelihood_tokens(windows, disable_tqdm=True, override_bs=self.batch_size)
            totals.append(sum(log_likelihood for log_likelihood, _ in scored))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals


def _windows(tokens: list[int], bos: int, length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield what each window sees before, and what it predicts: every token once, all but the first from a text's."""
    first, step = length, max(length - 1, 1)
    if tokens:
        yield [bos], tokens[:first]
    for begin in range(first, len(tokens), step):
        yield [bos, tokens[begin - 1]], tokens[begin : begin + step]


class Benchmarks:
    """lm-eval tasks, looked up once and run on any number of models."""

    def __init__(self, settings: EvaluationSettings, setting: str = "evaluation.tasks") -> None:
        """Look the tasks up.

        Args:
            settings: Tasks, where to find them, and how they are run.
            setting: What the user calls the tasks; for the error.

        Raises:
            PlanError: If lm-eval knows no task of a name.
        """
        self._settings, self._setting = settings, setting
        self._manager = TaskManager(include_path=settings.include_path)
        unknown = [task for task in settings.tasks if task not in self._manager.all_tasks]
        if unknown:
            raise PlanError(
                f"{setting}: lm-eval knows no task {', '.join(unknown)}; list its tasks with `lm-eval ls tasks`, or "
                f"name the folder of your own with {setting.rpartition('.')[0]}.include_path"
            )

    def require_data(self) -> None:
        """Build every task once, which loads its data and whatever else it needs, so that none fails after hours.

        Raises:
            PlanError: If one cannot be built here; says why.
        """
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        # The second is what lm-eval 0.4.10 has, and the first what later versions want.
        load = getattr(self._manager, "load", None) or self._manager.load_task_or_group
        for task in self._settings.tasks:
            try:
                with redirect_stdout(sys.stderr):
                    load([task])
            except Exception as error:
                reason = " ".join(str(error).split())[:_LONGEST_REASON] or "no reason given"
                raise PlanError(
                    f"{self._setting}: lm-eval cannot build the task {task} here ({type(error).__name__}: {reason}); "
                    "get its data into the cache of datasets (HF_HOME) on a machine with network, install what it "
                    "asks for, or leave the task out"
                ) from error

    def run(self, model: CausalLM, tokenizer: Path, seed: int) -> list[dict[str, Any]]:
        """Run the tasks on a loaded model, as it is.

        Args:
            model: On its device.
            tokenizer: The folder of its tokenizer.
            seed: Of every random draw.

        Returns:
            Rows of `benchmarks.parquet` without the model's name.
        """
        settings = self._settings
        os.environ.setdefault("DISABLE_MULTIPROC", "1")  # else the bootstrap forks this process, model and all
        with redirect_stdout(sys.stderr):  # lm-eval prints what it does
            results = lm_eval.simple_evaluate(
                model=WindowedModel(pretrained=model, tokenizer=str(tokenizer), batch_size=settings.batch_size),
                tasks=list(settings.tasks),
                task_manager=self._manager,
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


def run_benchmarks(path: Path, settings: EvaluationSettings, seed: int) -> list[dict[str, Any]]:
    """Run the settings' tasks on a stock folder.

    Args:
        path: The folder.
        settings: Tasks, where to find them, and how they are run.
        seed: Of every random draw.

    Returns:
        Rows of `benchmarks.parquet` without the model's name.

    Raises:
        PlanError: If lm-eval knows no task of a name.
    """
    benchmarks = Benchmarks(settings)
    return benchmarks.run(load_for_inference(path), path, seed)


def accuracy(rows: Sequence[dict[str, Any]], task: str, setting: str = "evaluation.tasks") -> float:
    """Return the accuracy in a task, in [0, 1].

    Args:
        rows: What `Benchmarks.run` returned.
        task: Its name.
        setting: What the user calls the task; for the error.

    Raises:
        PlanError: If the task measures something else.
    """
    metrics = {row["metric"].partition(",")[0]: row["value"] for row in rows if row["task"] == task}
    if "acc" not in metrics:
        raise PlanError(
            f"{setting}: {task} gives {', '.join(metrics) or 'nothing'} but no acc; choose a multiple-choice task "
            "such as winogrande"
        )
    return float(metrics["acc"])


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
