"""Widths of FFNs that transformers computes from what a config says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AdjustedWidth:
    """Two thirds of what the config says, times a number of it, rounded up to a multiple of another.

    Attributes:
        switch: The key that says whether; where it is false, the config says the width itself.
        multiplier: The key of the factor, which may be null: then nothing is rounded either.
        multiple_of: The key of what the width is a multiple of.

    Source: the sizes of Llama 1 and 2, whose gate brought a third matrix to an FFN of the same size.
    """

    switch: str
    multiplier: str
    multiple_of: str

    def read(self, config: Mapping[str, Any], said: int) -> int:
        """Return the number of neurons.

        Args:
            config: The content, with all that transformers fills in.
            said: What it says.
        """
        if not config.get(self.switch):
            return said
        width, factor = int(2 * said / 3), config.get(self.multiplier)
        if factor is None:
            return width
        step: int = config[self.multiple_of]
        return -(-int(factor * width) // step) * step

    def written(self) -> dict[str, Any]:
        """Return what a config says beside the width itself."""
        return {self.switch: False}
