"""Differences between two models in lm-eval tasks, with standard errors of pairs: both answer the same documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose, sqrt
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Row: TypeAlias = Mapping[str, Any]
Key: TypeAlias = tuple[str, str]
"""A task and a metric of it."""
Document: TypeAlias = tuple[str, int, str]
"""Its task, number and hash."""

NORMAL_95 = 1.96
"""Standard errors on both sides between which 95 % of a normal distribution lie."""


def within(value: float, limit: float, standard_error: float) -> bool:
    """Whether a value is at most a limit, or above it by no more than chance makes likely; NaN is not.

    Args:
        value: What was measured.
        limit: The most that it may be.
        standard_error: Of the value.
    """
    return value <= limit + NORMAL_95 * standard_error


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more a model has in a metric than another.

    Attributes:
        value: The mean over documents of what the one got less what the other got.
        standard_error: Of that mean.
        num_documents: What it is over.
    """

    value: float
    standard_error: float
    num_documents: int

    @property
    def differs(self) -> bool:
        """Whether the models differ by more than chance makes likely."""
        return abs(self.value) > NORMAL_95 * self.standard_error


@dataclass(frozen=True, slots=True)
class Mean:
    """A metric that is the mean of what documents got.

    Attributes:
        asked: The task's version and the examples in its prompt.
        values: What each document got.
    """

    asked: tuple[str, int | None]
    values: Mapping[Document, float]


@dataclass(frozen=True, slots=True)
class TaskResults:
    """What lm-eval found of one model.

    Attributes:
        rows: Of `benchmarks.parquet`, without the model's name.
        documents: Of `documents.parquet`, likewise.
        answers: Of `answers.parquet`, likewise; empty unless they were asked for.
    """

    rows: Sequence[Row]
    documents: Sequence[Row]
    answers: Sequence[Row] = ()

    def means(self) -> dict[Key, Mean]:
        """Return the metrics that are means over documents, which perplexity for one is not."""
        by_metric = dict[Key, dict[Document, float]]()
        for row in self.documents:
            got = by_metric.setdefault((row["task"], row["metric"]), {})
            got[row["task"], row["document"], row["document_hash"]] = row["value"]
        found = dict[Key, Mean]()
        for row in self.rows:
            tasks = row["subtasks"].split(",") if row["subtasks"] else [row["task"]]
            parts = (by_metric.get((task, row["metric"]), {}) for task in tasks)
            values = {document: value for part in parts for document, value in part.items()}
            if values and isclose(fmean(values.values()), row["value"], rel_tol=1e-9, abs_tol=1e-12):
                found[row["task"], row["metric"]] = Mean((row["task_version"], row["num_fewshot"]), values)
        return found


def paired_difference(values: NDArray[np.float64], others: NDArray[np.float64]) -> Difference:
    """Return the mean of x_i - y_i and its standard error s / sqrt(n), s being their sample standard deviation.

    Args:
        values: (num_documents,); what a model got, at least two.
        others: (num_documents,); what the other got, in the same order.

    Source: Miller 2024 (arXiv 2411.00640), paired differences of evaluations.
    """
    each = values - others
    return Difference(float(each.mean()), float(each.std(ddof=1)) / sqrt(len(each)), len(each))


def differences(model: TaskResults, other: TaskResults) -> dict[Key, Difference]:
    """Return by task and metric how much more a model has than another.

    A metric is left out that is no mean over documents, or that the two did not get on the same documents, of which
    there have to be two, with the same examples.

    Args:
        model: What one got.
        other: What the other got.
    """
    theirs = other.means()
    found = dict[Key, Difference]()
    for key, mean in model.means().items():
        same = key in theirs and mean.asked == theirs[key].asked and mean.values.keys() == theirs[key].values.keys()
        if same and len(mean.values) > 1:
            documents = sorted(mean.values)
            pair = (np.array([got.values[document] for document in documents]) for got in (mean, theirs[key]))
            found[key] = paired_difference(*pair)
    return found
