"""Settings of the surgery; no torch."""

from typing import Literal

Start = Literal["select", "rotate"]
"""How hidden channels shrink: the most important ones stay as they are, or the stream is rotated first."""

Repair = Literal["none", "ridge"]
"""What makes up for cut neurons and heads: nothing, or a ridge regression of what output projections read."""

SEQUENCE_RIDGE = 0.1
"""The same of the repair in sequence, which pulls towards the student that is already repaired."""

RIDGE = 0.003
"""Strength of the repair's penalty, as a share of the mean square of a projection's inputs."""
