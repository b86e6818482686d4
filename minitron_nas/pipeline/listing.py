"""Looking without doing: which candidates a size has, which families and spaces are known."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minitron_nas.families.catalog import layout_of, layouts
from minitron_nas.pipeline.plan import parse_size
from minitron_nas.resources import resource_names
from minitron_nas.space.axes import load_space
from minitron_nas.space.enumerate import Enumeration, enumerate_candidates


def enumerate_size(space_name: str, size: str | float, teacher: str | None = None) -> Enumeration:
    """Enumerate a space for its own source shape, or for a teacher.

    Args:
        space_name: A preset's name or a YAML file.
        size: Total parameters, such as "4B".
        teacher: The model to prune; needed where the space carries no source shape.

    Raises:
        SpaceError: If there is no such space, or no candidate.
        PlanError: If the size is no count.
    """
    count, space = parse_size(size), load_space(space_name)
    if teacher is None:
        source = space.source_architecture()
    else:
        from minitron_nas.families.teacher import resolve_teacher  # deferred: imports torch

        with TemporaryDirectory() as work:
            source = resolve_teacher(teacher, Path(work)).architecture
    return enumerate_candidates(space, count, source, layout_of(source.model_type))


def list_known(what: str) -> list[dict[str, Any]]:
    """Return `name` and `about` of every known family or shipped search space, with more that a program may want.

    Args:
        what: "families" or "spaces".
    """
    if what == "families":
        return [
            {"name": name, "about": ", ".join(layout.shape_fields()), "shape_fields": layout.shape_fields()}
            for name, layout in layouts().items()
        ]
    names = resource_names("search_spaces", ".yaml")
    return [{"name": name, "about": load_space(name).description} for name in names]
