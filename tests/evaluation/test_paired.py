"""Paired differences, by hand and by scipy."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from minitron_nas.evaluation.paired import Difference, TaskResults, differences, paired_difference, within

ONE, OTHER = (1, 1, 0, 1, 0, 1, 1, 1), (1, 0, 0, 1, 1, 0, 1, 0)


def results(values: Any, value: float | None = None, task: str = "sums", **row: Any) -> TaskResults:
    documents = [
        {"task": task, "metric": "acc,none", "document": number, "document_hash": f"h{number}", "value": float(got)}
        for number, got in enumerate(values)
    ]
    mean = sum(values) / len(values) if value is None else value
    whole = {"task": task, "metric": "acc,none", "value": mean, "task_version": "1", "num_fewshot": 0, "subtasks": None}
    return TaskResults([{**whole, **row}], documents)


def test_eight_documents_by_hand() -> None:
    """Differences 0 1 0 0 -1 1 0 1: mean 1/4; squares about it sum to 3.5, so s = sqrt(3.5 / 7), s / sqrt(8) = 1/4."""
    found = paired_difference(np.array(ONE, float), np.array(OTHER, float))
    assert found == Difference(0.25, pytest.approx(0.25), 8)
    assert not found.differs


def test_pairs_tell_apart_what_two_separate_errors_do_not() -> None:
    """100 documents, 50 right against 44: the same but for six, which the one got right and the other wrong."""
    one = np.array([1.0] * 50 + [0.0] * 50)
    other = np.array([1.0] * 44 + [0.0] * 56)
    found = paired_difference(one, other)
    assert found.value == pytest.approx(0.06)
    assert found.standard_error == pytest.approx(math.sqrt((0.06 - 0.06**2) / 99))
    assert found.differs
    apart = math.sqrt((0.5 * 0.5 + 0.44 * 0.56) / 99)
    assert 1.96 * apart > 0.06


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=40))
def test_the_standard_error_is_that_of_a_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    one, other = np.array(pairs).T
    found = paired_difference(one, other)
    assert found.standard_error == pytest.approx(float(stats.sem(one - other)), abs=1e-12)
    assert paired_difference(other, one).value == pytest.approx(-found.value)


def test_a_difference_exceeds_a_limit_only_beyond_chance() -> None:
    drop = Difference(0.05, 0.02, 100)
    assert drop.differs
    assert not within(drop.value, 0.0, drop.standard_error)
    assert not within(drop.value, 0.01, drop.standard_error)
    assert within(drop.value, 0.02, drop.standard_error)
    assert not Difference(0.0, 0.0, 100).differs


def test_models_are_compared_on_the_same_documents() -> None:
    assert differences(results(ONE), results(OTHER))["sums", "acc,none"].value == 0.25
    assert differences(results(ONE), results(OTHER[:7])) == {}
    assert differences(results(ONE), results(OTHER, num_fewshot=5)) == {}
    assert differences(results(ONE), results(OTHER, task_version="2")) == {}
    assert differences(results(ONE), results(OTHER, task="products")) == {}
    assert differences(results(ONE[:1]), results(OTHER[:1])) == {}, "one document has no standard error"
    changed = [{**row, "document_hash": "another"} if row["document"] == 3 else row for row in results(OTHER).documents]
    assert differences(results(ONE), TaskResults(results(OTHER).rows, changed)) == {}


def test_the_order_of_documents_does_not_matter() -> None:
    other = results(OTHER)
    turned = TaskResults(other.rows, other.documents[::-1])
    assert differences(results(ONE), turned) == differences(results(ONE), other)


def test_what_is_no_mean_over_documents_is_not_compared() -> None:
    assert differences(results(ONE, value=12.5), results(OTHER)) == {}
    assert differences(results(ONE), results(OTHER, value=12.5)) == {}
