"""lm-eval tasks of two models, or of the members of two runs, held against each other document by document."""

from collections.abc import Iterator
from pathlib import Path

from minitron_nas.evaluation.paired import TaskResults, differences
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.execution.device import release_memory
from minitron_nas.models.loading import load_for_inference
from minitron_nas.pipeline.steps.check import Check
from minitron_nas.reporting.run_record import plain_rows
from minitron_nas.storage.schemas import BENCHMARKS, DOCUMENTS
from minitron_nas.storage.tables import read_frame


def require_tasks(evaluation: EvaluationSettings) -> None:
    """Refuse tasks that lm-eval cannot do here.

    Args:
        evaluation: Names the tasks.

    Raises:
        PlanError: Names one.
    """
    from minitron_nas.evaluation.lm_eval import Benchmarks  # deferred: importing lm_eval takes seconds

    Benchmarks(evaluation).require_data()


def results_of_models(
    base: Path, other: Path, evaluation: EvaluationSettings, seed: int
) -> tuple[TaskResults, TaskResults]:
    """Run tasks on two models.

    Args:
        base: The folder of one.
        other: The folder of the other.
        evaluation: Names the tasks.
        seed: Of the examples in prompts.
    """
    from minitron_nas.evaluation.lm_eval import Benchmarks  # deferred: importing lm_eval takes seconds

    benchmarks = Benchmarks(evaluation)
    first = benchmarks.run(load_for_inference(base), base, seed)
    release_memory()
    return first, benchmarks.run(load_for_inference(other), other, seed)


def results_of_run(folder: Path) -> dict[str, TaskResults]:
    """Read what the members of a run have answered, by their names.

    Args:
        folder: The run's.
    """
    rows, documents = (
        {str(name): plain_rows(part) for name, part in read_frame(folder, table).groupby("model")}
        for table in (BENCHMARKS, DOCUMENTS)
    )
    columns = [column.name for column in BENCHMARKS.columns]
    whole = {name: [{**dict.fromkeys(columns), **row} for row in part] for name, part in rows.items()}
    return {name: TaskResults(part, documents.get(name, [])) for name, part in whole.items()}


def checks_of_tasks(
    base: TaskResults, other: TaskResults, limit: float | None, model: str | None = None
) -> Iterator[Check]:
    """Yield a check for every metric: by how much the second model is worse than the first.

    The limit is on metrics that are means over documents and are to be high.

    Args:
        base: What the first got.
        other: What the second got.
        limit: The most by which a metric may fall.
        model: Of two runs the member's name.
    """
    theirs = {(row["task"], row["metric"]): row["value"] for row in other.rows}
    means, found = base.means(), differences(base, other)
    for row in base.rows:
        key, higher = (row["task"], row["metric"]), row["higher_is_better"]
        sign, held = -1.0 if higher is False else 1.0, limit if higher and key in means else None
        name, value = " ".join(key), theirs.get(key)
        if value is None:
            yield Check(name, None, held, base=row["value"], model=model, words="the second has not answered it")
        elif key in found:
            drop, error = sign * found[key].value, found[key].standard_error
            yield Check(name, drop, held, base=row["value"], other=value, model=model, standard_error=error)
        elif key in means:
            words = "not on the same documents with the same examples, so not comparable"
            yield Check(name, None, held, base=row["value"], other=value, model=model, words=words)
        else:
            yield Check(name, sign * (row["value"] - value), None, base=row["value"], other=value, model=model)
