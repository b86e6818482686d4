import pytest

from minitron_nas.reporting import numerals


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (numerals.count, 134_515_008, "134.5M"),
        (numerals.whole, 134_515_008, "134,515,008"),
        (numerals.nats, 0.21371, "0.214"),
        (numerals.nats, 0.00431, "0.0043"),
        (numerals.nats, 0.0, "0.000"),
        (numerals.four_digits, 21.4251, "21.43"),
        (numerals.four_digits, 214.251, "214.3"),
        (numerals.four_digits, 2142.51, "2,143"),
        (numerals.speed, 6080.2, "6,080"),
        (numerals.speed, 66.04, "66.0"),
        (numerals.speed, 4.947, "4.95"),
        (numerals.ratio, 1.2359, "1.24\N{MULTIPLICATION SIGN}"),
        (numerals.percent, 0.8149, "81\N{NO-BREAK SPACE}%"),
        (numerals.memory, 652_800_000, "653\N{NO-BREAK SPACE}MB"),
        (numerals.memory, 1_372_000_000, "1.37\N{NO-BREAK SPACE}GB"),
        (numerals.memory, 12, "12\N{NO-BREAK SPACE}bytes"),
        (numerals.tiny, 2.1e-6, "2.1e-6"),
        (numerals.tiny, 1e-4, "1e-4"),
        (numerals.tiny, 0.0, "0"),
        (numerals.tiny, 0.031, "0.031"),
    ],
)
def test_a_number_is_written_with_sensible_digits(write, value, text):
    assert write(value) == text


@pytest.mark.parametrize(
    "write",
    [
        numerals.count,
        numerals.whole,
        numerals.nats,
        numerals.four_digits,
        numerals.speed,
        numerals.ratio,
        numerals.percent,
        numerals.memory,
        numerals.tiny,
    ],
)
def test_what_is_missing_is_a_dash(write):
    assert write(None) == "\N{EN DASH}"


@pytest.mark.parametrize(
    ("indices", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5], "0 to 2, 5"), ([1, 3, 4], "1, 3 to 4")]
)
def test_indices_are_written_as_ranges(indices, text):
    assert numerals.index_ranges(indices) == text
