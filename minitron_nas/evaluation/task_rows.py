"""What lm-eval returns, as rows of tables: of metrics, of documents, and of answers."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minitron_nas.evaluation.paired import Row, TaskResults
from minitron_nas.evaluation.settings import EvaluationSettings

_HASH_DIGITS = 16


def rows_of(found: Sequence[Mapping[str, Any]], settings: EvaluationSettings) -> TaskResults:
    """Return what calls of `lm_eval.simple_evaluate` found of one model.

    Args:
        found: What they returned, with samples.
        settings: What they were asked for.
    """
    rows, documents, answers = list[Row](), list[Row](), list[Row]()
    for results in found:
        samples = [(task, sample) for task, each in results.get("samples", {}).items() for sample in each]
        of_documents = [row for task, sample in samples for row in _documents(task, sample)]
        counts = Counter((task, _key(metric, sample)) for task, sample in samples for metric in sample["metrics"])
        rows += [row for task in results["results"] for row in _rows(task, results, counts, settings.limit)]
        documents += of_documents
        answers += [_answer(task, sample) for task, sample in samples if settings.keep_answers]
    return TaskResults(rows, documents, answers)


def _rows(task: str, results: Mapping[str, Any], counts: Counter[tuple[str, str]], limit: int | None) -> list[Row]:
    rows = list[Row]()
    subtasks = list(_subtasks(task, results.get("group_subtasks", {})))
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
                "num_documents": sum(counts[each, metric] for each in subtasks or [task]),
                "higher_is_better": results.get("higher_is_better", {}).get(task, {}).get(name),
                "subtasks": ",".join(subtasks) or None,
            }
        )
    return rows


def _subtasks(task: str, groups: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the tasks of a group, also those of groups in it; nothing for a task."""
    for child in groups.get(task, ()):
        yield from _subtasks(child, groups) if groups.get(child) else (child,)


def _key(metric: str, sample: Mapping[str, Any]) -> str:
    return f"{metric},{sample['filter']}"


def _documents(task: str, sample: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a document's values; what is made of all documents together has none of each."""
    for metric in sample["metrics"]:
        if isinstance(value := sample[metric], int | float | np.number | np.bool_):
            yield {
                "task": task,
                "metric": _key(metric, sample),
                "document": sample["doc_id"],
                "document_hash": sample["doc_hash"][:_HASH_DIGITS],
                "value": float(value),
            }


def _answer(task: str, sample: Mapping[str, Any]) -> Row:
    first = sample["arguments"][0]
    return {
        "task": task,
        "filter": sample["filter"],
        "document": sample["doc_id"],
        "prompt": str(first[0]),
        "choices": _json([asked[1] for asked in sample["arguments"]]),
        "target": str(sample["target"]),
        "answers": _json(sample["filtered_resps"]),
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
