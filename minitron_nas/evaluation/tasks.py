"""What lm-eval is asked for: tasks with their numbers of examples, and lists of them by name; no lm-eval."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Self, TypeAlias

from pydantic import AfterValidator

OFFLINE = "offline"
"""All tasks of the user's own folder. lm-eval brings tasks but no data, so that without a hub there are no others."""

PRESETS = {
    "paper": (
        "winogrande@5",
        "arc_challenge@25",
        "mmlu@5",
        "hellaswag@10",
        "gsm8k@5",
        "truthfulqa_mc2@0",
        "xlsum_english@3",
        "mbpp@0",
        "humaneval@0",
    ),
}
"""Lists of tasks by name.

`paper` is what the papers measure, with their numbers of examples. lm-eval lacks English XL-Sum: that is a file of
ours, in `own_tasks/`, which says how it differs. They sample code at temperature 0.2; lm-eval's tasks write the most
probable.

Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 4.
"""

_WRITTEN = re.compile(r"([^@\s]+)(?:@(\d+))?")


@dataclass(frozen=True, slots=True)
class Task:
    """A task as it is asked for.

    Attributes:
        name: lm-eval's.
        num_fewshot: Examples in the prompt; None for as many as the settings, or else the task itself, say.
    """

    name: str
    num_fewshot: int | None = None

    @classmethod
    def parse(cls, written: str) -> Self:
        """Read a task such as "arc_challenge@25".

        Raises:
            ValueError: If it is not of this form.
        """
        match = _WRITTEN.fullmatch(written)
        if match is None:
            raise ValueError(
                f"{written!r} is no task; write its name, and behind an @ the examples in its prompt where you want "
                "another number than its own, such as arc_challenge@25"
            )
        return cls(match[1], None if match[2] is None else int(match[2]))


def _written_task(written: str) -> str:
    Task.parse(written)
    return written


WrittenTask: TypeAlias = Annotated[str, AfterValidator(_written_task)]
"""A task as a user writes it: its name, or `name@examples`."""


def expand(written: Sequence[str]) -> tuple[str, ...]:
    """Put the tasks of presets in the place of their names.

    Args:
        written: Tasks, and names of presets.

    Raises:
        ValueError: If a task is asked for twice.
    """
    tasks = tuple(_expanded(written))
    names = [Task.parse(task).name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} asked for twice; name each task once")
    return tasks


def _expanded(written: Sequence[str]) -> Iterator[str]:
    for one in written:
        yield from PRESETS.get(one, (one,))
