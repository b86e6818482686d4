"""YAML that people write: read as plain values, unless it is ambiguous or made to do harm."""

import re
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

_MOST_CHARACTERS = 1_000_000
_MOST_VALUES = 100_000
_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OTHER_BASE = re.compile(r"[-+]?0[0-7_]+|.*:.*")
"""Numbers that YAML 1.1 reads to base 8 or 60, as nobody who writes 010 or 1:30 today means them."""


def load_yaml(text: str) -> Any:
    """Read a YAML text as plain values.

    Raises:
        ValueError: If it is no YAML, gives a key twice, holds a number to base 8 or 60, nests or refers to itself
            without end, or stands for more values than anyone would write; says where, on one line.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it holds {len(text):,} characters, and at most {_MOST_CHARACTERS:,} are read")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        _check(node, {})
        return SafeConstructor().construct_document(node)
    except RecursionError:
        raise ValueError("it nests without end") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _check(node: yaml.Node, counts: dict[yaml.Node, int | None]) -> int:
    """Return how many values a node stands for once every alias is replaced by what it names."""
    if node in counts:
        if (known := counts[node]) is None:
            raise ValueError(f"line {node.start_mark.line + 1} refers to itself")
        return known
    counts[node] = None
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated(node)
        inner = [each for pair in node.value for each in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    else:
        _refuse_other_base(node)
    total = 1 + sum(_check(each, counts) for each in inner)
    if total > _MOST_VALUES:
        raise ValueError(f"line {node.start_mark.line + 1} stands for more than {_MOST_VALUES:,} values")
    counts[node] = total
    return total


def _refuse_repeated(node: yaml.MappingNode) -> None:
    seen: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
            continue
        line, name = key.start_mark.line + 1, (key.tag, key.value)
        if name in seen:
            raise ValueError(f"{key.value!r} is given twice, in lines {seen[name]} and {line}; keep one")
        seen[name] = line


def _refuse_other_base(node: yaml.Node) -> None:
    if node.tag in _NUMBERS and _OTHER_BASE.fullmatch(node.value):
        value = SafeConstructor().construct_object(node)
        raise ValueError(
            f"line {node.start_mark.line + 1}: {node.value} would be the number {value}; write a number without colons "
            "and leading zeros, or text in quotes"
        )
