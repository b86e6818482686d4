from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from minitron_nas.errors import MinitronNasError, PlanError
from minitron_nas.settings import Count, Settings, about_bytes, format_count, parse_count, plan_error


class Inner(Settings):
    tokens: Count = 1_000
    learning_rate: float = 1e-4


class Outer(Settings):
    size: Count
    sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    inner: Inner = Inner()
    other: Inner | None = None


def refusal(content: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(content)
    error = plan_error(caught.value, Outer, "plan.yaml")
    assert isinstance(error, PlanError)
    assert isinstance(error, MinitronNasError)
    assert isinstance(error, ValueError)
    return str(error)


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (1, 1),
        (8e9, 8_000_000_000),
        (1e16, 10_000_000_000_000_000),
        (2**60 + 1, 2**60 + 1),
        ("110M", 110_000_000),
        ("4.5B", 4_500_000_000),
        ("64k", 64_000),
        ("64K", 64_000),
        ("1.5 t", 1_500_000_000_000),
        (" 12 ", 12),
        ("8e9", 8_000_000_000),
        ("2e+16", 20_000_000_000_000_000),
        ("0.006k", 6),
    ],
)
def test_a_count_is_read_with_and_without_suffix(written: object, count: int) -> None:
    assert parse_count(written) == count


@pytest.mark.parametrize(
    "written", ["", "many", "-5", "5 G", "1,000", None, True, [1], float("nan"), float("inf"), "1e400"]
)
def test_what_is_no_number_is_refused_as_a_count(written: object) -> None:
    with pytest.raises(ValueError, match="is not a count; write a number such as 8e9 or '110M'"):
        parse_count(written)


@pytest.mark.parametrize("written", [0, 0.0, "0", "0.0004k", "0.9", 0.5])
def test_a_count_below_one_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"is not a positive count"):
        parse_count(written)


@pytest.mark.parametrize(("written", "near"), [(1.5, 2), ("2.4", 2), ("1.2345k", 1234), (94_160_505.6, 94_160_506)])
def test_a_fraction_is_refused_where_a_count_is_due(written: object, near: int) -> None:
    with pytest.raises(ValueError, match=rf"^{written!r} is no whole number; write one, such as {near}$"):
        parse_count(written)


@pytest.mark.parametrize("written", [2**63, "1e19", "10000000t", "9" * 5000])
def test_a_count_that_no_64_bits_hold_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"is more than a count may be; write at most 9223372036854775807") as caught:
        parse_count(written)
    assert len(str(caught.value)) < 140


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (1, "1"),
        (999, "999"),
        (1_000, "1k"),
        (64_000, "64k"),
        (94_500_000, "94.5M"),
        (8_030_261_248, "8.03B"),
        (999_949, "999.9k"),
        (999_950, "1M"),
        (999_999_999, "1B"),
        (3_800_000_000_000, "3.8T"),
    ],
)
def test_a_count_is_written_with_four_digits_and_a_suffix(count: int, written: str) -> None:
    assert format_count(count) == written


@pytest.mark.parametrize(
    ("num_bytes", "written"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (612_345_678, "612 MB"),
        (999_900_000, "1 GB"),
        (2.5e9, "2.5 GB"),
        (1.64e12, "1.64 TB"),
        (1234e12, "1,230 TB"),
    ],
)
def test_bytes_are_written_to_three_digits(num_bytes, written):
    assert about_bytes(num_bytes) == written


@given(st.integers(min_value=1, max_value=10**15 - 1))
def test_a_written_count_is_read_back_within_its_four_digits(count: int) -> None:
    assert abs(parse_count(format_count(count)) - count) <= count * 5e-4


@given(st.integers(min_value=1, max_value=2**63 - 1))
def test_an_integer_is_its_own_count(count: int) -> None:
    assert parse_count(count) == parse_count(str(count)) == count


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Inner().tokens = 5  # type: ignore[misc]


def test_a_field_of_type_count_takes_a_suffix() -> None:
    assert Outer.model_validate({"size": "110M", "inner": {"tokens": "2k"}}) == Outer(
        size=110_000_000, inner=Inner(tokens=2_000)
    )


def test_an_unknown_key_is_answered_with_the_nearest_known_one() -> None:
    assert refusal({"size": 1, "iner": {}}) == (
        "plan.yaml: unknown key 'iner'; did you mean 'inner'? known keys: inner, other, size, sizes"
    )


@pytest.mark.parametrize("field", ["inner", "other"])
def test_an_unknown_key_inside_a_section_is_answered_with_that_sections_keys(field: str) -> None:
    assert refusal({"size": 1, field: {"token": 1}}) == (
        f"plan.yaml: unknown key '{field}.token'; did you mean 'tokens'? known keys: learning_rate, tokens"
    )


def test_all_faults_are_shown_at_once() -> None:
    message = refusal({"size": "many", "inner": {"learning_rate": "fast", "tokns": 1}})
    assert message == (
        "plan.yaml: size: 'many' is not a count; write a number such as 8e9 or '110M'; "
        "inner.learning_rate: Input should be a valid number, unable to parse string as a number; "
        "unknown key 'inner.tokns'; did you mean 'tokens'? known keys: learning_rate, tokens"
    )


def test_a_missing_key_is_named() -> None:
    assert refusal({}) == "plan.yaml: size: Field required"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "-inf"])
def test_a_number_that_is_not_finite_is_refused(number: object) -> None:
    assert refusal({"size": 1, "inner": {"learning_rate": number}}) == (
        "plan.yaml: inner.learning_rate: Input should be a finite number"
    )


def test_a_list_is_not_called_too_short_for_what_was_refused_in_it() -> None:
    assert refusal({"size": 1, "sizes": ["many"]}) == (
        "plan.yaml: sizes.0: 'many' is not a count; write a number such as 8e9 or '110M'"
    )
    assert refusal({"size": 1, "sizes": []}).startswith("plan.yaml: sizes: Tuple should have at least 1 item")


class Numbers(Settings):
    seed: Annotated[int, Field(ge=0)] | None = 0
    rate: float | Literal["auto"] = 0.1
    widths: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    shares: dict[str, float] | None = None
    flag: bool = False
    either: bool | int = 0


@pytest.mark.parametrize("given", [{"seed": True}, {"rate": False}, {"widths": [1, True]}, {"shares": {"a": True}}])
def test_a_truth_is_refused_where_a_number_is_due(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        Numbers.model_validate(given)
    ((name, value),) = given.items()
    error = plan_error(caught.value, Numbers, "plan.yaml")
    assert str(error) == f"plan.yaml: {name}: {value!r} is no number; write one"


def test_a_truth_stays_one_where_it_is_due() -> None:
    found = Numbers.model_validate({"flag": True, "either": True, "rate": "auto", "seed": None})
    assert found.flag is found.either is True
