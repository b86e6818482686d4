"""`Hop`: one step down the family."""

from dataclasses import dataclass

from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.settings import format_count


@dataclass(frozen=True, slots=True)
class Hop:
    """One step down the family: a size and the model that it is pruned from."""

    size: int
    source: Checkpoint
    source_name: str

    @property
    def label(self) -> str:
        """The size as people say it."""
        return format_count(self.size)
