"""Benchmark scores through lm-eval; the only module that imports it."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from minitron_nas.errors import PlanError
from minitron_nas.evaluation.paired import Row, TaskResults
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.evaluation.task_rows import rows_of
from minitron_nas.evaluation.tasks import OFFLINE, Task
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.loading import load_for_inference
from minitron_nas.text.tokenization import leading_bos

_BOOTSTRAP_DRAWS = 1000  # for the few metrics without a formula; 0 would leave out every standard error
_LONGEST_REASON = 300  # characters; the errors of a hub can have pages
_OWN_TASKS = str(Path(__file__).parent / "own_tasks")
_CODE_VARIABLE = "HF_ALLOW_CODE_EVAL"  # without 1 in it, the metric that runs programs refuses to


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
            PlanError: If lm-eval knows no task of a name, or the user's folder holds none.
        """
        self._settings, self._setting = settings, setting
        self._group = setting.rpartition(".")[0]
        folders = [_OWN_TASKS, *([settings.include_path] if settings.include_path is not None else [])]
        self._manager = TaskManager(include_path=folders)  # of two tasks of one name the later folder's counts
        self._tasks = [task for written in settings.tasks for task in self._asked(written)]
        unknown = [task.name for task in self._tasks if task.name not in self._manager.all_tasks]
        if unknown:
            raise PlanError(
                f"{setting}: lm-eval knows no task {', '.join(unknown)}; list its tasks with `lm-eval ls tasks`, or "
                f"name the folder of your own with {self._group}.include_path"
            )

    def _asked(self, written: str) -> list[Task]:
        """Return a task that is named by itself, or all of the user's folder."""
        if written != OFFLINE:
            return [Task.parse(written)]
        folder = self._settings.include_path
        own = TaskManager(include_path=folder, include_defaults=False).all_subtasks
        if not own:
            raise PlanError(f"{self._group}.include_path: {folder} holds no task of lm-eval (files such as name.yaml)")
        return [Task(name) for name in own]

    def require_data(self) -> None:
        """Build every task once, which loads its data and whatever else it needs, so that none fails after hours.

        Raises:
            PlanError: If one cannot be built here, is asked for twice, has a fixed number of examples that is not the
                one asked for, or runs what a model writes where that is not allowed; says why.
        """
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        part_of = dict[str, Task]()
        with _generated_code(self._settings.run_generated_code):
            for task in self._tasks:
                for built in self._build(task):
                    self._check(task, built)
                    name = built.config.task
                    if (first := part_of.setdefault(name, task)) is not task:
                        raise PlanError(
                            f"{self._setting}: {name} is asked for by {first.name} and by {task.name}; name one of them"
                        )

    def _build(self, task: Task) -> list[Any]:
        """Return a task, or those of a group."""
        # The second is what lm-eval 0.4.10 has, and the first what later versions want.
        load = getattr(self._manager, "load", None) or self._manager.load_task_or_group
        try:
            with redirect_stdout(sys.stderr):
                return list(_leaves(load([task.name])))
        except Exception as error:
            if _CODE_VARIABLE in str(error) and not self._settings.run_generated_code:
                raise self._runs_code(task) from None
            reason = " ".join(str(error).split())[:_LONGEST_REASON] or "no reason given"
            raise PlanError(
                f"{self._setting}: lm-eval cannot build the task {task.name} here ({type(error).__name__}: {reason}); "
                "get its data into the cache of datasets (HF_HOME) on a machine with network, install what it asks "
                "for, or leave the task out"
            ) from error

    def _check(self, task: Task, built: Any) -> None:
        if getattr(built, "UNSAFE_CODE", False) and not self._settings.run_generated_code:
            raise self._runs_code(task)
        if task.num_fewshot and built.get_config("num_fewshot") == 0:
            raise PlanError(
                f"{self._setting}: {task.name} has 0 examples in its prompt, which lm-eval does not change to "
                f"{task.num_fewshot}; write {task.name}"
            )

    def _runs_code(self, task: Task) -> PlanError:
        return PlanError(
            f"{self._setting}: {task.name} runs the programs that a model writes, and nothing keeps them from doing "
            f"harm; allow it with {self._group}.run_generated_code=true on a machine that may come to harm, or leave "
            "the task out"
        )

    def run(self, model: CausalLM, tokenizer: Path, seed: int) -> TaskResults:
        """Run the tasks on a loaded model, as it is.

        Args:
            model: On its device.
            tokenizer: The folder of its tokenizer.
            seed: Of every random draw.
        """
        os.environ.setdefault("DISABLE_MULTIPROC", "1")  # else the bootstrap forks this process, model and all
        measured = WindowedModel(pretrained=model, tokenizer=str(tokenizer), batch_size=self._settings.batch_size)
        numbers = {task.num_fewshot: None for task in self._tasks}
        with redirect_stdout(sys.stderr), _generated_code(self._settings.run_generated_code):  # it prints what it does
            return rows_of([self._run_with(measured, number, seed) for number in numbers], self._settings)

    def _run_with(self, model: WindowedModel, num_fewshot: int | None, seed: int) -> dict[str, Any]:
        """Run the tasks that want the same number of examples, which is one for all in a call of lm-eval."""
        settings = self._settings
        found: dict[str, Any] = lm_eval.simple_evaluate(
            model=model,
            tasks=[task.name for task in self._tasks if task.num_fewshot == num_fewshot],
            task_manager=self._manager,
            num_fewshot=settings.num_fewshot if num_fewshot is None else num_fewshot,
            limit=settings.limit,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            bootstrap_iters=_BOOTSTRAP_DRAWS,
            log_samples=True,
            confirm_run_unsafe_code=settings.run_generated_code,
        )
        return found


def run_benchmarks(path: Path, settings: EvaluationSettings, seed: int) -> TaskResults:
    """Run the settings' tasks on a stock folder.

    Args:
        path: The folder.
        settings: Tasks, where to find them, and how they are run.
        seed: Of every random draw.

    Raises:
        PlanError: If lm-eval knows no task of a name.
    """
    benchmarks = Benchmarks(settings)
    return benchmarks.run(load_for_inference(path), path, seed)


def accuracy(rows: Sequence[Row], task: str, setting: str = "evaluation.tasks") -> float:
    """Return the accuracy in a task, in [0, 1].

    Args:
        rows: Those that `Benchmarks.run` returned.
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


@contextmanager
def _generated_code(allowed: bool) -> Iterator[None]:
    """Tell the metrics that run programs whether they may."""
    before = os.environ.get(_CODE_VARIABLE)
    os.environ[_CODE_VARIABLE] = "1" if allowed else "0"
    try:
        yield
    finally:
        os.environ.pop(_CODE_VARIABLE)
        if before is not None:
            os.environ[_CODE_VARIABLE] = before


def _leaves(loaded: Any) -> Iterator[Any]:
    """Yield the tasks of what lm-eval has loaded: flat in later versions, nested by groups in 0.4.10."""
    for one in loaded.get("tasks", loaded).values():
        if isinstance(one, dict):
            yield from _leaves(one)
        else:
            yield one
