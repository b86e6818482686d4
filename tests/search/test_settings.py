import pytest
from pydantic import ValidationError

from minitron_nas.search.settings import SearchSettings


def test_rungs_halve_back_from_the_last_one():
    assert SearchSettings(tokens="1.8B").rung_tokens(10**12) == [450_000_000, 900_000_000, 1_800_000_000]


def test_without_tokens_the_last_rung_is_a_fiftieth_of_a_students_tokens():
    # The papers' own: 1.8B of 94B, about 2 %.
    assert SearchSettings().rung_tokens(94_000_000_000)[-1] == 1_880_000_000


@pytest.mark.parametrize(
    ("settings", "rungs"),
    [
        ({"num_rungs": 1}, [90]),
        ({"num_rungs": 4, "reduction": 3}, [3, 10, 30, 90]),
        ({"num_rungs": 5, "reduction": 9}, [1, 1, 1, 10, 90]),
    ],
)
def test_rungs_follow_their_number_and_the_reduction_and_never_fall_below_a_token(settings, rungs):
    assert SearchSettings(tokens=90, **settings).rung_tokens(10**9) == rungs


def test_a_tiny_budget_still_has_a_token():
    assert SearchSettings(num_rungs=2).rung_tokens(3) == [1, 1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_screened", 0), ("num_finalists", 0), ("num_rungs", 0), ("reduction", 1), ("screen_sequences", 0)],
)
def test_a_search_that_searches_nothing_is_refused(field, value):
    with pytest.raises(ValidationError, match=rf"{field}\n  Input should be greater than or equal to"):
        SearchSettings(**{field: value})
