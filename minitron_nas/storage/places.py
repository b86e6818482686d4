"""What is told of places on a machine where others read it: their last part."""

import re
from collections.abc import Mapping
from typing import Any

_PLACE = re.compile(r"(?:~[^/]*|\.{1,2})?/|[A-Za-z]:[\\/]|\\\\|(?!hf:)[a-z][a-z0-9+.-]*://")
"""How a path or a URI begins; what lies on the Hugging Face hub is no secret of a machine."""

_SEPARATORS = re.compile(r"[\\/]+")


def last_parts(value: Any) -> Any:
    """Return plain values in which of every path and URI only the last part stands.

    The rest says who works where, and is of no use on another machine.

    Args:
        value: A string, or mappings and sequences of them.
    """
    if isinstance(value, str):
        return _last_part(value) if _PLACE.match(value) else value
    if isinstance(value, Mapping):
        return {name: last_parts(each) for name, each in value.items()}
    return [last_parts(each) for each in value] if isinstance(value, list | tuple) else value


def _last_part(place: str) -> str:
    return next((part for part in reversed(_SEPARATORS.split(place)) if part), place)
