"""lm-eval's tasks of one model, as rows of tables, and held against what another model got."""

from collections.abc import Iterator
from pathlib import Path

from minitron_nas.evaluation.paired import Row, TaskResults, differences
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.execution.device import release_memory
from minitron_nas.storage.schemas import ANSWERS, BENCHMARKS, DOCUMENTS, Table


def benchmark(model: Path, settings: EvaluationSettings, seed: int) -> TaskResults:
    """Run lm-eval's tasks on a model.

    Args:
        model: Its folder.
        settings: The tasks.
        seed: Of the examples in prompts.
    """
    from minitron_nas.evaluation.lm_eval import run_benchmarks  # deferred: importing lm_eval takes seconds

    found = run_benchmarks(model, settings, seed)
    release_memory()
    return found


def task_tables(model: str, found: TaskResults) -> list[tuple[Table, list[Row]]]:
    """Return what a model got as rows of the tables that have any.

    Args:
        model: What the tables call it.
        found: What it got.
    """
    tables = ((BENCHMARKS, found.rows), (DOCUMENTS, found.documents), (ANSWERS, found.answers))
    return [(table, [{"model": model, **row} for row in rows]) for table, rows in tables if rows]


def difference_rows(model: str, other: str, found: TaskResults, others: TaskResults) -> Iterator[Row]:
    """Yield rows of `differences.parquet`, without the size: how much more a model has than another.

    Args:
        model: The name of the one.
        other: The name of the other.
        found: What the one got.
        others: What the other got.
    """
    for (task, metric), difference in differences(found, others).items():
        yield {
            "model": model,
            "other": other,
            "task": task,
            "metric": metric,
            "num_documents": difference.num_documents,
            "difference": difference.value,
            "standard_error": difference.standard_error,
            "differs": difference.differs,
        }
