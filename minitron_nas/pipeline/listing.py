"""Looking without doing: which candidates a size has."""

from pathlib import Path
from tempfile import TemporaryDirectory

from minitron_nas.errors import PlanError
from minitron_nas.families.catalog import layout_of
from minitron_nas.settings import parse_count
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
    try:
        count = parse_count(size)
    except ValueError as error:
        raise PlanError(f"--size: {error}") from None
    space = load_space(space_name)
    if teacher is None:
        source = space.source_architecture()
    else:
        from minitron_nas.families.teacher import resolve_teacher  # deferred: imports torch

        with TemporaryDirectory() as work:
            source = resolve_teacher(teacher, Path(work)).architecture
    return enumerate_candidates(space, count, source, layout_of(source.model_type))
