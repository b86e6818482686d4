"""Infinity and NaN in a `config.json`, which transformers writes as objects because JSON has no numbers for them."""

import math
from typing import Any

_TAG = "__float__"
_NAMES = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def plain_floats(content: Any) -> Any:
    """Return JSON content with floats for the objects that stand for them.

    Args:
        content: As it was read.
    """
    if isinstance(content, dict):
        if content.keys() == {_TAG} and content[_TAG] in _NAMES:
            return _NAMES[content[_TAG]]
        return {key: plain_floats(value) for key, value in content.items()}
    if isinstance(content, list):
        return [plain_floats(value) for value in content]
    return content


def tagged_floats(content: Any) -> Any:
    """Return content with objects for floats that JSON has no numbers for.

    Args:
        content: As it is to be written.
    """
    if isinstance(content, float) and not math.isfinite(content):
        return {_TAG: "NaN" if math.isnan(content) else "Infinity" if content > 0 else "-Infinity"}
    if isinstance(content, dict):
        return {key: tagged_floats(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [tagged_floats(value) for value in content]
    return content
