"""The base of everything that a user can set: strict, frozen, and with helpful refusals."""

import difflib
import inspect
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, TypeAlias, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from minitron_nas.errors import PlanError

Location: TypeAlias = tuple[int | str, ...]
"""Of a value: keys and places from the outermost on."""

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_COUNT = re.compile(r"(\d+(?:\.\d+)?(?:e\+?\d{1,2})?)\s*([kmbt]?)", re.IGNORECASE)
_MOST = 2**63 - 1
"""What 64 bits hold."""

BYTES: dict[str, int] = {"b": 1} | {
    f"{prefix}{middle}b": base**power
    for middle, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("kmgt", start=1)
}
"""Bytes of each unit, by its name in lower case."""


def parse_count(value: object) -> int:
    """Read a count such as 8e9, "110M", "4.5B" or "64k".

    Raises:
        ValueError: If the value is not a positive count, or no whole one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a count; write a number such as 8e9 or '110M'")
    match = _COUNT.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is not a count; write a number such as 8e9 or '110M'")
    exact = Decimal(match[1]) * _SUFFIXES[match[2].lower()]
    count = int(exact)
    if count < 1:
        raise ValueError(f"{value!r} is not a positive count")
    if count != exact:
        raise ValueError(f"{_short(value)} is no whole number; write one, such as {round(exact)}")
    if count > _MOST:
        raise ValueError(f"{_short(value)} is more than a count may be; write at most {_MOST}")
    return count


def _short(value: object) -> str:
    return repr(value) if len(str(value)) <= 40 else f"a number of {len(str(value)):,} characters"


def format_count(count: int) -> str:
    """Write a count as people say it: 94500000 becomes "94.5M"."""
    for suffix in "tbmk":
        digits = f"{count / _SUFFIXES[suffix]:.4g}"
        if float(digits) >= 1:
            return digits + (suffix.upper() if suffix != "k" else "k")
    return str(count)


def format_bytes(num_bytes: int) -> str:
    """Write bytes with a unit, to the byte: 1536000 becomes "1.536MB"."""
    for unit in ("TB", "GB", "MB", "kB"):
        if num_bytes >= BYTES[unit.lower()]:
            return f"{Decimal(num_bytes) / BYTES[unit.lower()]}{unit}"
    return f"{num_bytes}B"


def about_bytes(num_bytes: float) -> str:
    """Write bytes as people say them, to three digits: 612345678 becomes "612 MB"."""
    for unit in ("TB", "GB", "MB", "kB"):
        digits = f"{num_bytes / BYTES[unit.lower()]:.3g}"
        if float(digits) >= 1:
            return f"{float(digits):,g} {unit}"
    return f"{num_bytes:.0f} bytes"


Count = Annotated[int, BeforeValidator(parse_count)]
"""A positive integer that may be written with a suffix (k, M, B, T)."""


class Settings(BaseModel):
    """Frozen settings that refuse unknown keys, and numbers that are none, truths or not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        many = {name for name, field in cls.model_fields.items() if get_origin(field.annotation) is tuple}
        return {
            name: (value,)
            if name in many and isinstance(value, str | int | float) and not isinstance(value, bool)
            else value
            for name, value in values.items()
        }

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_a_truth(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        is_number = (_is_made_of(kind, int) or _is_made_of(kind, float)) and not _is_made_of(kind, bool)
        if is_number and _holds_truth(value):
            raise ValueError(f"{value!r} is no number; write one")
        return value


def _is_made_of(annotation: object, kind: type) -> bool:
    return annotation is kind or any(_is_made_of(inner, kind) for inner in get_args(annotation))


def _holds_truth(value: object) -> bool:
    if isinstance(value, list | tuple | dict):
        return any(map(_holds_truth, value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool)


def settings_within(kind: object) -> list[type[Settings]]:
    """Return the groups of settings that a field's annotation names, itself or as one of several types."""
    return [inner for inner in (kind, *get_args(kind)) if isinstance(inner, type) and issubclass(inner, Settings)]


def attribute_docs(model: type[Settings]) -> dict[str, str]:
    """Return what the docstring of a group of settings says of each of them, on one line."""
    _, _, attributes = inspect.cleandoc(model.__doc__ or "").partition("\nAttributes:\n")
    section = re.split(r"\n\n(?=\S)", attributes)[0]
    parts = re.split(r"^ {4}(\w+): ", section, flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def plan_error(error: ValidationError, model: type[BaseModel], origin: str) -> PlanError:
    """Turn all of pydantic's complaints into one `PlanError` that names the nearest known keys.

    Args:
        error: What pydantic raised.
        model: The settings class that was being read.
        origin: Where the values came from, e.g. "plan.yaml".
    """
    found = error.errors()
    told = [fault for fault in found if not _only_follows(fault["type"], fault["loc"], [each["loc"] for each in found])]
    faults = [_describe(fault["loc"], fault["type"], fault["msg"], model) for fault in told]
    return PlanError(f"{origin}: " + "; ".join(faults))


def _only_follows(kind: str, location: Location, locations: Sequence[Location]) -> bool:
    """Whether a list is called too short only because what stands in it was refused."""
    return kind == "too_short" and any(
        each[: len(location)] == location and len(each) > len(location) for each in locations
    )


def _describe(location: Location, kind: str, message: str, model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in location)
    if kind == "model_type":
        message = "must be a mapping"
    if kind != "extra_forbidden":
        message = message.removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    known = _fields_at(model, location[:-1])
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key {key!r}; {hint}known keys: {', '.join(sorted(known))}"


def _fields_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    parts = iter(path)
    for part in parts:
        field = model.model_fields.get(str(part))
        inner = settings_within(field.annotation) if field else []
        if not inner:
            return []
        if field is not None and get_origin(field.annotation) is dict:
            next(parts, None)  # the name of one of several groups
        model = inner[0]
    return list(model.model_fields)
