import pytest
from pydantic import ValidationError

from minitron_nas.search.settings import SearchSettings, procedure


def test_rungs_halve_back_from_the_last_one():
    assert SearchSettings(tokens="1.8B").rung_tokens(10**12) == [0, 450_000_000, 900_000_000, 1_800_000_000]


def test_without_tokens_the_last_rung_is_a_fiftieth_of_a_students_tokens():
    # The papers' own: 1.8B of 94B, about 2 %.
    assert SearchSettings().rung_tokens(94_000_000_000)[-1] == 1_880_000_000


@pytest.mark.parametrize(
    ("settings", "rungs"),
    [
        ({"num_rungs": 1}, [90]),
        ({"num_rungs": 4, "reduction": 3}, [0, 3, 10, 30, 90]),
        ({"num_rungs": 5, "reduction": 9}, [0, 1, 1, 1, 10, 90]),
    ],
)
def test_rungs_follow_their_number_and_the_reduction_and_never_fall_below_a_token(settings, rungs):
    assert SearchSettings(tokens=90, **settings).rung_tokens(10**9) == rungs


def test_a_tiny_budget_still_has_a_token():
    assert SearchSettings(num_rungs=2).rung_tokens(3) == [0, 1, 1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_screened", 0), ("num_finalists", 0), ("num_rungs", -1), ("reduction", 1), ("screen_sequences", 0)],
)
def test_a_search_that_searches_nothing_is_refused(field, value):
    with pytest.raises(ValidationError, match=rf"{field}\n  Input should be greater than or equal to"):
        SearchSettings(**{field: value})


def test_without_rungs_no_trial_has_tokens():
    assert SearchSettings(num_rungs=0).rung_tokens(10**9) == []


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("default", SearchSettings()),
        ("exhaustive", SearchSettings(sampler="random", max_screened=None, num_finalists=None, num_rungs=1)),
        ("screen-only", SearchSettings(num_finalists=1, num_rungs=0)),
        ("random", SearchSettings(sampler="random", max_screened=1, num_finalists=1, num_rungs=0)),
    ],
)
def test_a_procedure_is_a_name_for_settings(name, settings):
    assert SearchSettings(**procedure(name)) == settings


def test_a_procedure_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="choose from default, exhaustive, screen-only, random"):
        procedure("exhaustiv")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"objectives": ["memory_bytes", "kl"]}, "must begin with kl and name each once"),
        ({"objectives": ["kl", "memory_bytes", "memory_bytes"]}, "must begin with kl and name each once"),
        ({"constraints": ["memory <= 6GB"]}, "is no constraint; write such as"),
    ],
)
def test_what_cannot_be_weighed_is_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        SearchSettings(**given)


def test_one_constraint_needs_no_list_and_is_written_as_it_was_given():
    settings = SearchSettings(constraints="memory_bytes  <=  6GB at batch 8")
    assert settings.constraints == ("memory_bytes <= 6GB at batch 8",)
    assert (settings.bounds[0].limit, settings.bounds[0].batch_size) == (6e9, 8)
