"""A drafted table as Python."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import transformers

from minitron_nas.architecture.layout import Layout, TensorRow
from minitron_nas.drafting.dims import OWN_NAMES, name_of
from minitron_nas.drafting.rows import Seen

_WIDTH = 120


def to_python(layout: Layout, seen: Sequence[Seen], remarks: Sequence[str]) -> str:
    """Return the source of a module that holds a table.

    Args:
        layout: The table.
        seen: Tensors that it does not explain, which become comments.
        remarks: What else there is to say.
    """
    body = list(_layout_lines(layout, seen))
    names = sorted({name for line in body for name in _names_in(line)}, key=lambda name: (not name.isupper(), name))
    own = [name for name in names if name in OWN_NAMES]
    imported = {name for name in names if name not in OWN_NAMES} | {"Layout"}
    if own:
        imported |= {"dim"} | ({"Axis"} if any("Axis" in OWN_NAMES[name] for name in own) else set())
    about = f"The table of {layout.model_type}, drafted from tiny models of transformers {transformers.__version__}."
    lines = [f'"""{about}"""', ""]
    lines += _import_lines(sorted(imported, key=_isort))
    lines += ["", *(f"{name} = {OWN_NAMES[name]}" for name in own), *([""] if own else [])]
    lines += [f"# {remark}" for remark in remarks]
    return "\n".join([*lines, *body]) + "\n"


def _isort(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def _import_lines(names: Sequence[str]) -> list[str]:
    line = f"from minitron_nas.architecture.layout import {', '.join(names)}"
    if len(line) <= _WIDTH:
        return [line]
    return ["from minitron_nas.architecture.layout import (", *(f"    {name}," for name in names), ")"]


def _layout_lines(layout: Layout, seen: Sequence[Seen]) -> Iterator[str]:
    yield "LAYOUT = Layout("
    yield f"    model_type={_quoted(layout.model_type)},"
    yield "    rows=("
    for row in layout.rows:
        yield f"        {_row_line(row)},"
    for each in seen:
        yield f"        # {each.name}: {each.told}"
    yield "    ),"
    for field in fields(Layout):
        value = getattr(layout, field.name)
        if field.name in {"model_type", "rows"} or not value or value == field.default:
            continue
        yield f"    {field.name}={_literal(value)},"
    yield ")"


def _row_line(row: TensorRow) -> str:
    told = [_quoted(row.name), *(name_of(dimension) for dimension in row.dims)]
    told += [f"{name}={_quoted(value)}" for name in ("when", "unless") if (value := getattr(row, name)) is not None]
    if row.on_branch:
        told.append("on_branch=True")
    return f"{'norm' if row.is_norm else 'row'}({', '.join(told)})"


def _names_in(line: str) -> Iterator[str]:
    if line.lstrip().startswith("#"):
        return
    code = line.split('"')[::2]
    for part in code:
        for word in part.replace("(", " ( ").replace(",", " ").replace(")", " ").split():
            if word in {"row", "norm", "Layout"} or (word.isupper() and word != "LAYOUT"):
                yield word


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, tuple):
        inside = ", ".join(map(_literal, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    return '"' + repr(text)[1:-1].replace('"', '\\"') + '"'
