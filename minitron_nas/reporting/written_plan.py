"""What reports read of a `plan.yaml`, refused by name where it is not what a build writes, now or once.

A report shows runs of earlier layouts, whose plans `FamilyPlan` no longer takes; what it does not read may be anything.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from minitron_nas.errors import RunFolderError
from minitron_nas.settings import Count, plan_error
from minitron_nas.space.size import Size


def _size(value: Any) -> Any:
    Size.parse(value)
    return value


def _group(value: Any) -> Any:
    """A preset is named by a word, which says nothing that is read."""
    return None if isinstance(value, str) else value


def _each(value: Any) -> Any:
    """What may be one is a list of one."""
    return value if isinstance(value, list) or value is None else [value]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class _Space(_Part):
    window: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    tolerance: float | None = None


class _Text(_Part):
    sequence_length: int | None = None
    calibration_samples: int | None = None
    validation_samples: int | None = None
    config: str | None = None
    split: str | None = None


class _Source(_Part):
    path: str | None = None
    config: str | None = None
    split: str | None = None


class _Search(_Part):
    objectives: list[str] | None = None
    batch_size: int | None = None
    context_tokens: int | None = None
    latency: str | None = None
    screen_sequences: int | None = None
    max_screened: int | None = None
    num_finalists: int | None = None
    num_rungs: int | None = None


class _Distillation(_Part):
    tokens: Count | None = None
    loss: str | None = None
    teacher_signal: str | None = None


class _Evaluation(_Part):
    texts: dict[str, _Source] | None = None


class _Runner(_Part):
    price_per_device_hour: float | None = None


_Named = Annotated[_Source | None, BeforeValidator(_group)]


class _Plan(_Space):
    """Earlier layouts had the window of sizes beside the sizes."""

    sizes: list[Annotated[Any, BeforeValidator(_size)]] | None = None
    data: Annotated[list[_Named] | None, BeforeValidator(_each)] = None
    space: Annotated[_Space | None, BeforeValidator(_group)] = None
    baselines: list[str] | None = None
    kd_teacher: str | None = None
    text: _Text | None = None
    search: _Search | None = None
    distillation: _Distillation | None = None
    evaluation: _Evaluation | None = None
    runner: Annotated[_Runner | None, BeforeValidator(_group)] = None


class _Teacher(_Part):
    source: str | None = None
    fingerprint: str | None = None
    num_parameters: int | None = None


class _Data(_Part):
    fingerprint: str | None = None


class _Devices(_Part):
    name: str
    number: int


class _File(_Part):
    plan: _Plan
    versions: dict[str, str | None] | None = None
    teacher: _Teacher | None = None
    data: _Data | None = None
    devices: _Devices | None = None


def require_written(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a plan that no build has written, as far as a report reads it.

    Args:
        path: The file.
        content: What stands in it.

    Raises:
        RunFolderError: Names each value that is not of its kind.
    """
    try:
        _File.model_validate(content)
    except ValidationError as error:
        raise RunFolderError(f"{plan_error(error, _File, str(path))}; restore it") from None
