import numpy as np
import pytest

from minitron_nas.errors import SpaceError
from minitron_nas.families.catalog import count_parameters, layout_of
from minitron_nas.space.axes import SearchSpace, load_space
from minitron_nas.space.enumerate import enumerate_candidates, expected_parameters
from minitron_nas.space.size import Size

SPACE = load_space("smollm2-135m")
SOURCE = SPACE.source_architecture()
LAYOUT = layout_of(SOURCE.model_type)


def layers_kept(columns):
    """How much faster than the source a shape is whose layers alone take time."""
    return SOURCE.num_hidden_layers / columns["num_hidden_layers"]


@pytest.mark.parametrize(
    ("given", "unit", "value", "label", "written"),
    [
        (8e9, "parameters", 8 * 10**9, "8B", 8 * 10**9),
        ("94.5M", "parameters", 94_500_000, "94.5M", 94_500_000),
        ("memory=6GB", "memory", 6 * 10**9, "memory-6GB", "memory=6GB"),
        ("memory = 1.5 GiB", "memory", 3 * 2**29, "memory-1.610612736GB", "memory=1.610612736GB"),
        ("memory=300mb", "memory", 300 * 10**6, "memory-300MB", "memory=300MB"),
        ("decode=2x", "decode", 2.0, "decode-2.0x", "decode=2.0x"),
        ("prefill=1.25", "prefill", 1.25, "prefill-1.25x", "prefill=1.25x"),
    ],
)
def test_a_size_is_read_as_people_write_it_and_has_one_label(given, unit, value, label, written):
    size = Size.parse(given)
    assert (size.unit, size.value, size.label, size.written) == (unit, value, label, written)
    assert Size.parse(size) == Size.parse(size.written) == Size.parse(str(size)) == Size.of_label(label) == size


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("speed=2x", "'speed' is no unit of a size; write total parameters, such as 4B, or memory=6GB, decode=2.0x or"),
        ("memory=6", "'6' is no memory; write such as memory=6GB or memory=6GiB"),
        ("memory=-6GB", "'-6GB' is no memory"),
        ("memory=6Gb", "Gb stands for bits; write bytes, such as memory=6GB"),
        ("memory=0GB", "'memory=0GB' is no memory at all"),
        ("decode=fast", "'fast' is no speed-up; write such as decode=2.0x"),
        ("decode=-2x", "'-2x' is no speed-up"),
        ("prefill=1.0x", "is no speed that pruning gives; write a speed-up over the teacher above 1 and up to 1000"),
        ("prefill=0x", "is no speed that pruning gives"),
        ("decode=2e22x", "'2e22x' is no speed-up"),
        ("4 billion", "'4 billion' is not a count; write a number such as 8e9 or '110M'"),
        (True, "True is not a count"),
    ],
)
def test_what_is_no_size_is_refused_with_an_example(given, said):
    with pytest.raises(ValueError, match=said):
        Size.parse(given)


def test_no_shape_breaks_what_a_size_in_memory_or_speed_promises():
    assert Size.parse("4B").window(0.05) == (3_800_000_000, 4_200_000_000)
    assert Size.parse("memory=6GB").window(0.05) == (5_400_000_000, 6_000_000_000)
    assert Size.parse("memory=6GB").window(0.6) == (0, 6_000_000_000)
    assert Size.parse("decode=2x").window(0.05) == pytest.approx((2.0, 2.2))


@pytest.mark.parametrize(
    ("larger", "smaller"), [("8B", "4B"), ("memory=6GB", "memory=900MB"), ("decode=1.5x", "decode=2.0x")]
)
def test_the_larger_model_has_the_greater_rank(larger, smaller):
    assert Size.parse(larger).rank > Size.parse(smaller).rank


def test_shapes_of_a_size_in_another_unit_are_those_whose_own_value_lies_in_its_window():
    def doubled(columns):
        return 2 * columns["hidden_size"] * columns["num_hidden_layers"]

    found = enumerate_candidates(SPACE, Size("memory", 30_000), SOURCE, LAYOUT, doubled)
    space = SPACE.model_copy(update={"tolerance": 0.5})
    everything = enumerate_candidates(space, Size("memory", 34_000), SOURCE, LAYOUT, doubled)
    legal = {each.id: each for each in everything.candidates}
    low, high = 30_000 * 0.96, 30_000
    wanted = [
        each.id
        for each in legal.values()
        if low <= 2 * each.architecture.hidden_size * each.architecture.num_hidden_layers <= high
    ]
    assert [each.id for each in found.candidates] == wanted
    assert 0 < len(wanted) < len(legal)
    assert found.values.tolist() == [
        2 * each.architecture.hidden_size * each.architecture.num_hidden_layers for each in found.candidates
    ]
    assert [each.num_parameters for each in found.candidates] == [
        count_parameters(each.architecture) for each in found.candidates
    ]
    assert len(found.candidates) + sum(found.excluded.values()) == len(legal) + sum(everything.excluded.values())


def test_a_size_in_parameters_needs_no_measure_and_is_the_same_however_it_is_given():
    plain = enumerate_candidates(SPACE, 94_000_000, SOURCE, LAYOUT)
    assert plain == enumerate_candidates(SPACE, "94M", SOURCE, LAYOUT)
    assert plain.values.tolist() == [each.num_parameters for each in plain.candidates]
    with pytest.raises(SpaceError, match="'huge' is not a count"):
        enumerate_candidates(SPACE, "huge", SOURCE, LAYOUT)
    with pytest.raises(SpaceError, match="size memory=1GB needs a `measure` of memory_bytes"):
        enumerate_candidates(SPACE, "memory=1GB", SOURCE, LAYOUT)


def test_a_speed_that_the_source_has_already_is_refused():
    with pytest.raises(
        SpaceError,
        match=r"size decode=1.5x is not above the source's 2.0x of the teacher's decode speed; choose a greater",
    ):
        enumerate_candidates(SPACE, "decode=1.5x", SOURCE, LAYOUT, lambda columns: 2 * layers_kept(columns))


def test_memory_that_the_source_does_not_fill_is_refused():
    with pytest.raises(SpaceError, match=r"size memory=1GB is not below the source's 17.28kB of memory; choose a sm"):
        enumerate_candidates(
            SPACE,
            "memory=1GB",
            SOURCE,
            LAYOUT,
            lambda columns: columns["hidden_size"] * columns["num_hidden_layers"],
        )


def test_a_speed_out_of_reach_is_refused_with_one_that_is_reached():
    axes = {"num_hidden_layers": {"values": [20, 25, 30]}}
    space = SearchSpace.model_validate({"axes": axes})
    with pytest.raises(SpaceError) as refused:
        enumerate_candidates(space, "decode=2x", SOURCE, LAYOUT, layers_kept)
    assert (
        "no shape has between 2.0x and 2.2x of the teacher's decode speed (size decode=2.0x); nearest reachable: "
        "1.5x; left out by: " in str(refused.value)
    )
    found = enumerate_candidates(space, "decode=1.5x", SOURCE, LAYOUT, layers_kept)
    assert found.candidates.columns()["num_hidden_layers"].tolist() == [20]


def test_a_window_of_parameters_serves_no_other_unit():
    space = load_space("llama-3.1-8b-to-4b")
    with pytest.raises(SpaceError, match=r"size memory=6GB is not told in parameters, and the space's window of 4.3B"):
        space.size_window("memory=6GB")


def test_what_a_student_will_have_is_its_size_or_the_most_of_its_shapes():
    found = enumerate_candidates(SPACE, "decode=1.2x", SOURCE, LAYOUT, layers_kept)
    size, most = Size.parse("decode=1.2x"), np.max([each.num_parameters for each in found.candidates])
    assert expected_parameters(size, found, 10**9) == most < 10**9
    assert expected_parameters(size, None, 10**9) == 10**9
    assert expected_parameters(Size.parse("94M"), found, 10**9) == 94_000_000
