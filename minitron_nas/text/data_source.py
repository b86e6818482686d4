"""`NamedText` and `DataSource`: a text, one source of a blend, and how a plan writes blends; no torch."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError

from minitron_nas.errors import PlanError
from minitron_nas.settings import Settings, plan_error

OWN = "data"
"""What a plan's own text is called beside the texts that it names."""


class NamedText(Settings):
    """A text, and what of it is read.

    Attributes:
        path: Text, jsonl or parquet files, a glob, a folder, a hub dataset's name, or "embedded".
        column: Instead of `text.column`.
        config: Instead of `text.config`.
        split: Instead of `text.split`.
    """

    path: str
    column: str | None = None
    config: str | None = None
    split: str | None = None


class DataSource(NamedText):
    """A source of a blend.

    Attributes:
        weight: Its share of the tokens, relative to the weights of the other sources; from a millionth to 1e15, so
            that no share is lost beside another.
    """

    weight: Annotated[float, Field(ge=1e-6, le=1e15)]


def read_sources(blend: Mapping[str, Any] | Sequence[Any]) -> tuple[DataSource, ...]:
    """Check the sources of a blend.

    Args:
        blend: Mappings with the fields of `DataSource`, or one mapping from path to weight.

    Raises:
        PlanError: If a source has an unknown key, no path or no positive weight, or there is no source.
    """
    entries = blend_entries(blend)
    if not entries:
        raise PlanError("a blend needs at least one source, such as {path: a.parquet, weight: 0.3}")
    return tuple(_read_source(number, source) for number, source in enumerate(entries, start=1))


def blend_entries(blend: Mapping[Any, Any] | Sequence[Any]) -> Sequence[Any]:
    """Return the sources of a blend as a sequence.

    Args:
        blend: Such a sequence, or a mapping from path to weight.
    """
    if isinstance(blend, Mapping):
        return [{"path": path, "weight": weight} for path, weight in blend.items()]
    return blend


def _read_source(number: int, source: object) -> DataSource:
    if not isinstance(source, Mapping | DataSource):
        raise PlanError(
            f"source {number} of the blend is {source!r}; write a mapping such as {{path: a.parquet, weight: 0.3}}"
        )
    try:
        return DataSource.model_validate(source)
    except ValidationError as error:
        raise plan_error(error, DataSource, f"source {number} of the blend") from None
