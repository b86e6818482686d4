"""Rules that a shape must keep, each with its reason, vectorised over arrays of candidates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minitron_nas.architecture.layout import Axis, Layout, axis_sizes
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import InvalidArchitectureError


@dataclass(frozen=True, slots=True)
class Rule:
    """A named condition on axis sizes.

    Attributes:
        name: A short identifier; it is the key of the table of left-out candidates.
        reason: Why the rule exists.
        applies: Whether a family is bound by it.
        keeps: From axis sizes (scalars or arrays) to truth values.
    """

    name: str
    reason: str
    applies: Callable[[Layout], bool]
    keeps: Callable[[Any], Any]


RULES = (
    Rule(
        "hidden_size_multiple_of_heads",
        "stock transformers refuses a config whose hidden_size is no multiple of num_attention_heads",
        lambda layout: layout.hidden_multiple_of_heads,
        lambda sizes: sizes[Axis.HIDDEN] % (sizes[Axis.KV_GROUPS] * sizes[Axis.GROUP_HEADS]) == 0,
    ),
)


def check_architecture(architecture: Architecture, layout: Layout) -> None:
    """Refuse a shape that stock transformers would refuse.

    Raises:
        InvalidArchitectureError: With the rule, its reason and the nearest legal hidden sizes.
    """
    sizes = axis_sizes(architecture)
    for rule in RULES:
        if rule.applies(layout) and not rule.keeps(sizes):
            heads = architecture.num_attention_heads
            below = architecture.hidden_size // heads * heads
            legal = " or ".join(str(size) for size in (below, below + heads) if size)
            raise InvalidArchitectureError(
                f"hidden_size={architecture.hidden_size} with num_attention_heads={heads} breaks the rule "
                f"{rule.name}: {rule.reason}; nearest legal hidden_size: {legal}"
            )
