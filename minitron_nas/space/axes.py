"""`SearchSpace`: what may change, read from YAML."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from minitron_nas.architecture.spec import SHAPE_FIELDS, Architecture
from minitron_nas.errors import SpaceError
from minitron_nas.resources import resource, resource_names
from minitron_nas.settings import Count, Settings, format_count, plan_error
from minitron_nas.space.size import Size
from minitron_nas.storage.plain_yaml import load_yaml

_NAME_FRACTION = 0.9
"""The least part of a window's low end that a size may be: models are often named after less than they have."""


class AxisValues(Settings):
    """The sizes that one axis may take.

    Exactly one of three forms: `values` lists sizes; `min_fraction` with `step_fraction` walks down
    from the source's size; `ratios` (for intermediate_size only) multiplies the candidate's own
    hidden_size. The last two are rounded down to `multiple_of`. The walk starts at the source's
    own size; the other forms hold it only if they name it.
    """

    values: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None = None
    min_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    step_fraction: Annotated[float, Field(ge=1e-4, le=1)] = 0.125
    ratios: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None = None
    multiple_of: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = [name for name in ("values", "min_fraction", "ratios") if getattr(self, name) is not None]
        if len(forms) != 1:
            raise ValueError(f"give exactly one of values, min_fraction and ratios (given: {forms or 'none'})")
        return self

    def sizes(self, source_size: int) -> list[int]:
        """Return the axis' sizes for a source, descending and without repeats, of `values` or the walk."""
        if self.values is not None:
            return sorted(set(self.values), reverse=True)
        assert self.min_fraction is not None
        steps = int((1 - self.min_fraction) / self.step_fraction + 1e-9)
        raw = (source_size * (1 - step * self.step_fraction) for step in range(1, steps + 1))
        rounded = (int(size + 1e-9) // self.multiple_of * self.multiple_of for size in raw)
        return sorted({source_size, *(size for size in rounded if size >= 1)}, reverse=True)


class SpaceAxes(Settings):
    """The axes of a space; an axis that is left out keeps the source's size.

    Attributes:
        num_hidden_layers: Layers, such as `{values: [28, 30, 32]}`.
        hidden_size: Channels of the residual stream, such as
            `{min_fraction: 0.5, step_fraction: 0.0625, multiple_of: 128}`, down from the source's.
        intermediate_size: FFN neurons, such as `{ratios: [2.5, 3], multiple_of: 128}`, times the candidate's
            hidden_size.
        num_attention_heads: Query heads; without it they follow their KV groups.
        num_key_value_heads: KV groups; without it groups of one head follow their heads.
        num_experts: Experts of a layer, in families that have them.
        moe_intermediate_size: Neurons of each expert, where that is not intermediate_size.
        shared_expert_intermediate_size: Neurons of what every token is sent to beside its experts, where that is a
            size of its own.
        mamba_num_heads: Heads of Mamba mixers, as many in each of their groups.
        mamba_head_dim: Channels of each of those heads.
    """

    num_hidden_layers: AxisValues | None = None
    hidden_size: AxisValues | None = None
    intermediate_size: AxisValues | None = None
    num_attention_heads: AxisValues | None = None
    num_key_value_heads: AxisValues | None = None
    num_experts: AxisValues | None = None
    moe_intermediate_size: AxisValues | None = None
    shared_expert_intermediate_size: AxisValues | None = None
    mamba_num_heads: AxisValues | None = None
    mamba_head_dim: AxisValues | None = None

    @model_validator(mode="after")
    def _ratios_only_for_neurons(self) -> Self:
        for name, axis in self.given().items():
            if axis.ratios is not None and name != "intermediate_size":
                raise ValueError(f"{name} takes values or min_fraction; ratios are for intermediate_size")
        return self

    def given(self) -> dict[str, AxisValues]:
        """Return the axes that the space has, by name."""
        return {name: axis for name in SHAPE_FIELDS if (axis := getattr(self, name)) is not None}

    def sizes(self, name: str, source: Architecture) -> list[int]:
        """Return the sizes of an axis, descending; the source's alone where the space has no such axis.

        Args:
            name: A prunable size.
            source: The shape that candidates are cut from.
        """
        axis = self.given().get(name)
        return [getattr(source, name)] if axis is None else axis.sizes(getattr(source, name))


class SearchSpace(Settings):
    """What the search may change, and how near a candidate must come to its size.

    Attributes:
        description: What it is for, in a line.
        axes: The sizes that each axis may take.
        tolerance: Greatest relative distance of a candidate's total parameters from the size; a size in memory takes
            shapes from twice that below it, one in speed up to twice that above it, and none that misses it.
        window: Least and greatest total parameters of one size; replaces `tolerance`. The size may be up to a
            tenth below the window, as Llama-3.1-Minitron-4B is below its 4.5 billion, and not above it.
        protected_layers: Layers that depth pruning never drops, negative ones from the end.
        source: The shape that the space was made for, in the words of `Architecture`; lets it be enumerated without a
            checkpoint. `layer_kinds` may be those of a period, which repeats.
    """

    description: str = ""
    axes: SpaceAxes = SpaceAxes()
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.05
    window: tuple[Count, Count] | None = None
    protected_layers: tuple[int, ...] = (0, -1)
    source: dict[str, bool | int | str | tuple[str, ...] | dict[str, bool | int]] | None = None

    @field_validator("source", mode="before")
    @classmethod
    def _kinds_are_words(cls, value: Any) -> Any:
        kinds = value.get("layer_kinds", []) if isinstance(value, dict) else []
        if not isinstance(kinds, list | tuple) or not all(isinstance(kind, str) for kind in kinds):
            raise ValueError(f"layer_kinds={kinds!r} must be a list of words: the kind of each layer")
        return value

    @model_validator(mode="after")
    def _window_in_order(self) -> Self:
        if self.window is not None and self.window[0] > self.window[1]:
            raise ValueError(f"window: {self.window[0]} exceeds {self.window[1]}; write the least size first")
        return self

    def size_window(self, size: Size | float | str) -> tuple[float, float]:
        """Return the least and greatest value allowed for a size, in its unit.

        Raises:
            SpaceError: If the space has a window and the size does not belong to it.
        """
        size = Size.parse(size)
        if self.window is None:
            return size.window(self.tolerance)
        self._require_inside(size, *self.window)
        return self.window

    def _require_inside(self, size: Size, low: int, high: int) -> None:
        least = round(_NAME_FRACTION * low)
        if size.unit != "parameters":
            raise SpaceError(
                f"size {size} is not told in parameters, and the space's window of {format_count(low)} to "
                f"{format_count(high)} is; choose a space with a tolerance instead of a window"
            )
        if not least <= size.value <= high:
            raise SpaceError(
                f"size {size} is outside of the space's window of {format_count(low)} to "
                f"{format_count(high)}, which serves sizes from {format_count(least)} to {format_count(high)}; "
                "choose such a size, or a space with a tolerance instead of a window"
            )

    def source_architecture(self) -> Architecture:
        """Return the shape that the space carries.

        Raises:
            SpaceError: If it carries none, or one with fields missing.
            InvalidArchitectureError: If such a shape cannot exist.
        """
        if self.source is None:
            raise SpaceError("this space carries no source shape; name a teacher to enumerate it for")
        fields: dict[str, Any] = dict(self.source)
        num_layers, kinds = fields.get("num_hidden_layers"), fields.get("layer_kinds")
        if isinstance(kinds, tuple) and isinstance(num_layers, int):
            if not kinds or num_layers % len(kinds):
                raise SpaceError(
                    f"the space's source: layer_kinds names {len(kinds)} layers, but num_hidden_layers={num_layers}; "
                    "name a kind for each layer, or for each of a period whose length divides their number"
                )
            fields["layer_kinds"] = kinds * (num_layers // len(kinds))
        try:
            return Architecture(**fields)
        except TypeError as error:
            raise SpaceError(f"the space's source is no shape: {error}") from None


def load_space(name_or_path: str | Path) -> SearchSpace:
    """Read a space: the name of a shipped preset or the path of a YAML file.

    Args:
        name_or_path: Such as `default` or `my-space.yaml`.

    Raises:
        SpaceError: If there is no such space or it cannot be used.
    """
    path = Path(name_or_path)
    if not path.is_file():
        known = resource_names("search_spaces", ".yaml")
        if str(name_or_path) not in known:
            raise SpaceError(
                f"no search space {str(name_or_path)!r}; give the path of a YAML file or one of: {', '.join(known)}"
            )
        path = resource("search_spaces", f"{name_or_path}.yaml")
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise SpaceError(f"{path.name} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise SpaceError(f"{path.name} must hold a mapping with the key 'axes'")
    try:
        return SearchSpace.model_validate(content)
    except ValidationError as error:
        raise SpaceError(str(plan_error(error, SearchSpace, path.name))) from None
