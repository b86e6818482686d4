"""Settings of the surgery; no torch."""

from dataclasses import dataclass
from typing import Literal

Start = Literal["select", "rotate"]
"""How hidden channels shrink: the most important ones stay as they are, or the stream is rotated first."""

Repair = Literal["none", "ridge"]
"""What makes up for what was cut: nothing, or ridge regressions on calibration text."""


@dataclass(frozen=True, slots=True)
class StartSettings:
    """What a student is before any training, as it was asked for.

    Attributes:
        channels: How hidden channels shrink.
        repair: What makes up for what was cut.
        merge_heads: Whether query heads that stay take over something of those that leave their group.
    """

    channels: Start = "rotate"
    repair: Repair = "ridge"
    merge_heads: bool = False

    @property
    def needs_moments(self) -> bool:
        """Whether second moments are measured for it."""
        return self.channels == "rotate" or self.repair == "ridge"


RIDGE = 0.003
"""Strength of the penalty of the repair in one pass, as a share of the mean square of a projection's inputs."""

SEQUENCE_RIDGE = 0.1
"""The same of the repair in sequence, whose statistics are those of a student that is cut already."""

RANDOM_TOKENS = 0.1
"""Share of a text's tokens that rotation and the repair in sequence replace with any of the vocabulary."""


@dataclass(frozen=True, slots=True)
class SequenceSettings:
    """How a student is repaired in sequence.

    Attributes:
        ridge: Strength of the penalty, as a share of the mean square of what a matrix reads.
        random_tokens: Share of the text's tokens that are replaced with any of the vocabulary.
        batch_sequences: Sequences of one forward pass.
    """

    ridge: float = SEQUENCE_RIDGE
    random_tokens: float = RANDOM_TOKENS
    batch_sequences: int = 4
