import pytest

from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import InvalidArchitectureError, PlanError
from minitron_nas.pipeline.shapes import drop_from, parse_layers, parse_request, parse_shape

SOURCE = Architecture("llama", 28, 64, 128, 4, 2, 16, vocab_size=100)


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


@pytest.mark.parametrize("text", ["", "hidden_size", "hidden_size=", "hidden_size=x", "hidden_size=-1", "a=1,,b=2"])
def test_a_shape_that_cannot_be_read_is_refused(text: str) -> None:
    message = r"--shape '.*' is not of the form name=integer, such as hidden_size=504, or drop_layers=20-27"
    with pytest.raises(PlanError, match=message):
        parse_shape(text)


@pytest.mark.parametrize("text", ["", "3,", "a", "27-20", "3-", "1.5", "hidden_size"])
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


def test_what_is_not_dropped_stays_also_counted_from_the_end() -> None:
    assert drop_from(SOURCE, {}, [*range(20, 28), 3, 3]) == [layer for layer in range(20) if layer != 3]
    assert drop_from(SOURCE, {"num_hidden_layers": 26}, [-1, -28]) == list(range(1, 27))


@pytest.mark.parametrize(
    ("layers", "shape", "error", "message"),
    [
        (
            [28],
            {},
            InvalidArchitectureError,
            r"drop_layers names layer 28, which does not exist; .* 28 layers \(0 to 27",
        ),
        ([-29], {}, InvalidArchitectureError, r"drop_layers names layer -29, which does not exist"),
        (range(28), {}, InvalidArchitectureError, r"drop_layers names all 28 layers of the source; keep at least one"),
        (
            [1, 2],
            {"num_hidden_layers": 22},
            PlanError,
            r"drop_layers leaves 26 of 28 layers, but the shape has num_hidden_layers=22; leave num_hidden_layers out",
        ),
    ],
)
def test_layers_that_cannot_be_dropped_are_refused(
    layers: list[int], shape: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        drop_from(SOURCE, shape, layers)
