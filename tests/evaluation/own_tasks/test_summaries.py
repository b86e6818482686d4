import datasets
import pytest

from minitron_nas.evaluation.own_tasks.summaries import every_fifth, rouge_l


def test_every_fifth_document_is_taken_from_the_first_on() -> None:
    documents = datasets.Dataset.from_dict({"id": list(range(11))})
    assert every_fifth(documents)["id"] == [0, 5, 10]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("A cat sat on mat", 8 / 11),  # 4 stems in order, of 5 that were written and 6 that are known
        ("mat the on", 4 / 9),  # 2 in order, of 3 and 6
        ("The cats sat on the mat.", 1.0),
        ("", 0.0),
    ],
)
def test_a_summary_is_as_near_as_its_stems_follow_the_known_ones(written: str, value: float) -> None:
    assert rouge_l({"summary": "the cats sat on the mat"}, [written]) == {"rougeL": pytest.approx(value)}
