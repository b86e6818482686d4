"""Settings of the surgery; no torch."""

from typing import Literal

Start = Literal["select", "rotate"]
"""How hidden channels shrink: the most important ones stay as they are, or the stream is rotated first."""

Repair = Literal["none", "ridge"]
"""What makes up for cut neurons, heads and layers: nothing, or a ridge regression of what is written."""
