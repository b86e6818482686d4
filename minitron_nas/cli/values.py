"""What the values of options mean: sizes, numbers of tokens, and text."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitron_nas.errors import PlanError
from minitron_nas.memory import parse_memory
from minitron_nas.settings import parse_count
from minitron_nas.space.size import Size
from minitron_nas.text.data_source import read_sources
from minitron_nas.text.settings import TextSettings

_WEIGHTED = re.compile(r"(?P<path>.+?)=(?P<weight>[\d.]+(?:e[+-]?\d+)?)(?P<keys>(?:,(?:column|config|split)=[^,=]+)*)")


def parse_size(size: str) -> Size:
    """Read a size, such as "4.5B" or "memory=6GB".

    Raises:
        PlanError: If it is none.
    """
    try:
        return Size.parse(size)
    except ValueError as error:
        raise PlanError(f"--size: {error}") from None


def parse_bytes(option: str, text: str) -> int:
    """Read a size of memory, such as "80GB".

    Args:
        option: For the error.
        text: What was given.

    Raises:
        PlanError: If it is none.
    """
    size = parse_memory(text)
    if size is None:
        raise PlanError(f"{option}={text!r} is no size of memory; write one such as 80GB")
    return size


def parse_tokens(option: str, text: str) -> int:
    """Read a number of tokens, such as "64k".

    Args:
        option: For the error.
        text: What was given.

    Raises:
        PlanError: If it is no count.
    """
    try:
        return parse_count(text)
    except ValueError as error:
        raise PlanError(f"{option}: {error}") from None


def calibration_samples(text: TextSettings, tokens: str) -> TextSettings:
    """Return text settings with as many calibration samples as a number of tokens fills.

    Args:
        text: Says how long a sample is.
        tokens: Such as 64k.

    Raises:
        PlanError: If it is no count, or fills no sample.
    """
    samples = parse_tokens("--tokens", tokens) // text.sequence_length
    if not samples:
        raise PlanError(f"--tokens {tokens} is less than one sample of {text.sequence_length} tokens; give more")
    return text.model_copy(update={"calibration_samples": samples})


def parse_data(values: Sequence[str]) -> str | list[dict[str, Any]]:
    """Read the values of a repeatable `--data`: one name, or the sources of a blend.

    Args:
        values: `PATH`, or for a blend `PATH=WEIGHT`, to which `,column=NAME`, `,config=NAME` and
            `,split=NAME` can be added.

    Raises:
        PlanError: If there are several values and one has no weight.
    """
    matches = [None if Path(value).exists() else _WEIGHTED.fullmatch(value) for value in values]
    if len(values) == 1 and matches[0] is None:
        return values[0]
    blend = []
    for value, match in zip(values, matches, strict=True):
        if match is None:
            raise PlanError(f"--data {value} has no weight; a blend is written --data a.parquet=0.3 --data b.jsonl=0.7")
        keys = dict(pair.split("=") for pair in match["keys"].split(",")[1:])
        blend.append({"path": match["path"], "weight": match["weight"], **keys})
    return [source.model_dump(exclude_none=True) for source in read_sources(blend)]
