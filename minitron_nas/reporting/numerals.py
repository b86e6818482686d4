"""Numbers as people read them: few digits, units, and a dash for what is missing."""

from collections.abc import Sequence

from minitron_nas.settings import about_bytes, format_count

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def count(value: float | None) -> str:
    """Write a number of parameters or tokens: 134515008 becomes "134.5M"."""
    return MISSING if value is None else format_count(round(value))


def whole(value: float | None) -> str:
    """Write a whole number with all its digits: 134515008 becomes "134,515,008"."""
    return MISSING if value is None else f"{value:,.0f}"


def nats(value: float | None) -> str:
    """Write a loss or KL with three decimals, a very small one with two digits."""
    if value is None:
        return MISSING
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Write a difference with its sign: -0.041 becomes a minus sign and "0.041"."""
    if value is None:
        return MISSING
    return f"{'+' if value > 0 else MINUS if value < 0 else ''}{nats(abs(value))}"


def four_digits(value: float | None) -> str:
    """Write a perplexity with four digits: 21.43, 214.3 or 2,143."""
    if value is None:
        return MISSING
    magnitude = len(str(int(abs(value))))
    return f"{value:,.{max(0, min(2, 4 - magnitude))}f}"


def speed(value: float | None) -> str:
    """Write a speed in tokens per second: 6080 becomes "6,080" and 66.04 becomes "66.0"."""
    if value is None:
        return MISSING
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def ratio(value: float | None) -> str:
    """Write a ratio: 1.236 becomes "1.24" and a multiplication sign."""
    return MISSING if value is None else f"{value:.2f}\N{MULTIPLICATION SIGN}"


def percent(fraction: float | None) -> str:
    """Write a fraction as a percentage: 0.821 becomes "82 %"."""
    return MISSING if fraction is None else f"{fraction * 100:.0f}\N{NO-BREAK SPACE}%"


def change(fraction: float | None) -> str:
    """Write a relative change: -0.0512 becomes a minus sign and "5.1 %"."""
    if fraction is None:
        return MISSING
    sign = "" if not round(fraction, 3) else "+" if fraction > 0 else MINUS
    return f"{sign}{abs(fraction) * 100:.1f}\N{NO-BREAK SPACE}%"


def memory(num_bytes: float | None) -> str:
    """Write bytes with a decimal unit: 612000000 becomes "612 MB"."""
    if num_bytes is None:
        return MISSING
    return about_bytes(num_bytes).replace(" ", "\N{NO-BREAK SPACE}")


def tiny(value: float | None) -> str:
    """Write a small difference: 2.1e-06 becomes "2.1e-6" and nothing at all "0"."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{float(digits):g}e{int(exponent)}" if int(exponent) < -3 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Write a time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def index_ranges(indices: Sequence[int]) -> str:
    """Write ascending indices as ranges: [0, 1, 2, 5] becomes "0 to 2, 5"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
