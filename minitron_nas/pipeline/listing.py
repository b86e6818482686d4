"""Looking without doing: which candidates a size has, which families and spaces are known."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_origin

import yaml

from minitron_nas.architecture.config import require_described
from minitron_nas.evaluation.latency import LatencyModel
from minitron_nas.families.catalog import layout_of, layouts
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.resources import resource_names
from minitron_nas.search.costing import Costing, Deployment
from minitron_nas.settings import Settings, attribute_docs, settings_within
from minitron_nas.space.axes import AxisValues, SearchSpace, load_space
from minitron_nas.space.enumerate import Enumeration, enumerate_candidates
from minitron_nas.space.size import Size


def enumerate_size(
    space_name: str,
    size: Size | float | str,
    teacher: str | None = None,
    batch_size: int = 1,
    context_tokens: int = 4096,
    latency: str | Path | None = None,
) -> Enumeration:
    """Enumerate a space for its own source shape, or for a teacher.

    Args:
        space_name: A preset's name or a YAML file.
        size: How large a student is to be.
        teacher: The model to prune; needed where the space carries no source shape.
        batch_size: Sequences at a time that memory is counted for.
        context_tokens: Tokens of each that keys and values are counted for.
        latency: A file of `minitron-nas latency`, which a size that is told in speed needs.

    Raises:
        SpaceError: If there is no such space, or no candidate.
        LatencyError: If the file cannot be read, or was made for other models.
    """
    space = load_space(space_name)
    if teacher is None:
        source = space.source_architecture()
        require_described(source, layout_of(source.model_type))
    else:
        from minitron_nas.models.source import outline_teacher  # deferred: imports torch

        with TemporaryDirectory() as work:
            source = outline_teacher(teacher, Path(work), reads_text=False).architecture
    size, layout = Size.parse(size), layout_of(source.model_type)
    model = None if latency is None else LatencyModel.load_for(Path(latency), source)
    costing = Costing(source, layout, context_tokens, Deployment(batch_size, context_tokens), model)
    return enumerate_candidates(space, size, source, layout, costing.measure(size))


def list_known(what: str) -> list[dict[str, Any]]:
    """Return `name` and `about` of every known family, shipped search space or setting of a plan.

    Args:
        what: "families", "spaces" or "settings"; rows of families have `shape_fields` too, those of settings `default`.
    """
    if what == "settings":
        return list(_settings(FamilyPlan))
    if what == "families":
        return [
            {"name": name, "about": ", ".join(layout.shape_fields()), "shape_fields": layout.shape_fields()}
            for name, layout in layouts().items()
        ]
    names = resource_names("search_spaces", ".yaml")
    return [{"name": name, "about": load_space(name).description} for name in names]


def _settings(model: type[Settings], shipped: Settings | None = None, prefix: str = "") -> Iterator[dict[str, Any]]:
    """Yield a row for each setting; defaults are those of `shipped`, else the model's own.

    A group that is off, or named as a whole, has a row of its own before those of its settings.
    """
    docs, values = attribute_docs(model), shipped or model.model_construct()
    written = values.model_dump(mode="json", warnings=False, exclude_none=True)
    for name, field in model.model_fields.items():
        inner = settings_within(field.annotation)
        group = bool(inner) and inner != [AxisValues] and get_origin(field.annotation) is not dict
        named = inner == [SearchSpace]
        if not group or named or field.default is None:
            yield _row(f"{prefix}{name}", "default" if named else written.get(name), docs[name])
        if group:
            yield from _settings(
                inner[0], load_space("default") if named else getattr(values, name), f"{prefix}{name}."
            )


def _row(name: str, default: Any, about: str) -> dict[str, Any]:
    written = yaml.safe_dump(default, default_flow_style=True, width=1000).split("\n")[0]
    shown = "" if default is None else f" Default: {written}."
    return {"name": name, "default": default, "about": f"{about}{shown}"}
