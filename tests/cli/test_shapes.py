import pytest

from minitron_nas.cli.shapes import parse_layers, parse_request, parse_shape
from minitron_nas.errors import PlanError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hidden_size=504, intermediate_size=1024", ({"hidden_size": 504, "intermediate_size": 1024}, None)),
        ("hidden_size=504,drop_layers=20-27", ({"hidden_size": 504}, [20, 21, 22, 23, 24, 25, 26, 27])),
        ("drop_layers=3,5,20-21,hidden_size=504", ({"hidden_size": 504}, [3, 5, 20, 21])),
        ("drop_layers = 7", ({}, [7])),
    ],
)
def test_a_shape_is_read_from_names_integers_and_layers(
    text: str, expected: tuple[dict[str, int], list[int] | None]
) -> None:
    assert parse_shape(text) == expected


@pytest.mark.parametrize(
    "text", ["", "hidden_size", "hidden_size=", "hidden_size=x", "hidden_size=-1", "a=1,,b=2", "a=²", "a=1" + "0" * 12]
)
def test_a_shape_that_cannot_be_read_is_refused(text: str) -> None:
    message = r"--shape '.*' is not of the form name=integer, such as hidden_size=504, or drop_layers=20-27"
    with pytest.raises(PlanError, match=message):
        parse_shape(text)


@pytest.mark.parametrize("text", ["a=40,a=48", "a=40,b=1, a =48", "drop_layers=3,a=40,a=48"])
def test_a_size_that_is_named_twice_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="--shape names a twice, as 40 and 48; keep one"):
        parse_shape(text)


@pytest.mark.parametrize("text", ["", "3,", "a", "27-20", "3-", "1.5", "hidden_size", "0-99999999999999", "²"])
def test_layers_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"drop_layers '.*' is neither a layer nor a range from low to high, such as 2"):
        parse_layers(text)


def test_layers_are_named_in_the_shape_or_beside_it_but_not_twice() -> None:
    assert parse_request("hidden_size=8", "2-3") == ({"hidden_size": 8}, [2, 3])
    assert parse_request(None, "2-3") == (None, [2, 3])
    assert parse_request("drop_layers=2-3", None) == ({}, [2, 3])
    assert parse_request(None, None) == (None, None)
    with pytest.raises(PlanError, match="both --shape and --drop-layers name layers to drop; leave one of them out"):
        parse_request("drop_layers=2", "2")
