"""What is known of a model before any of its weights is read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from minitron_nas.architecture.costs import count_parameters
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import PlanError

_BYTES_OF_DTYPE = {"float32": 4, "float64": 8}
_HALF_BYTES = 2


@dataclass(frozen=True, slots=True)
class Outline:
    """A model's shape, and how much its files take.

    Attributes:
        path: Its folder, or what it is called where it has none.
        architecture: Its shape.
        layout: The table of its family.
        weights_bytes: Of its weights in files.
        companions_bytes: Of what lies beside them and goes with every student: tokenizer, templates, terms.
        config: Its `config.json`; empty where a shape is all that is known.
        text_of: The type of the wrapper whose text part this is; empty where it is a whole model.
    """

    path: Path | str
    architecture: Architecture
    layout: Layout
    weights_bytes: int
    companions_bytes: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    text_of: str = ""

    @classmethod
    def of_shape(cls, name: str, architecture: Architecture, layout: Layout) -> Self:
        """Return the outline of a shape alone, its weights in half precision.

        Args:
            name: What it is called.
            architecture: The shape.
            layout: The table of its family.
        """
        return cls(name, architecture, layout, count_parameters(architecture, layout) * _HALF_BYTES)

    @classmethod
    def of_config(
        cls, path: Path | str, config: dict[str, Any], architecture: Architecture, layout: Layout, text_of: str = ""
    ) -> Self:
        """Return the outline of a model whose config alone is there.

        Args:
            path: Its folder, or its name.
            config: The content of its `config.json`, which says in what type its weights are.
            architecture: Its shape.
            layout: The table of its family.
            text_of: The type of the wrapper whose text part this is.
        """
        dtype = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
        num_bytes = _BYTES_OF_DTYPE.get(dtype, _HALF_BYTES)
        num_bytes *= count_parameters(architecture, layout)
        return cls(path, architecture, layout, num_bytes, config=config, text_of=text_of)

    @property
    def num_parameters(self) -> int:
        """Number of parameters, tied embeddings counted once."""
        return count_parameters(self.architecture, self.layout)

    def about(self, sequence_length: int) -> Iterator[str]:
        """Yield what a user should know of how it is read.

        Args:
            sequence_length: Tokens of the sequences that it reads.
        """
        return about_model(self.text_of, self.config, self.layout, sequence_length)

    def require_length(self, sequence_length: int) -> None:
        """Refuse sequences that are longer than a table of learned positions.

        Raises:
            PlanError: With both lengths.
        """
        require_positions(self.path, self.architecture, sequence_length)


def about_model(text_of: str, config: Mapping[str, Any], layout: Layout, sequence_length: int) -> Iterator[str]:
    """Yield what it means that a model is part of a wrapper, hands on a state, or reads more than it was made for.

    Args:
        text_of: The type of the wrapper; empty of a whole model.
        config: The stock config of the model.
        layout: The table of its family.
        sequence_length: Tokens of the sequences that it reads.
    """
    if text_of:
        names = ", ".join(config.get("architectures") or [str(config.get("model_type"))])
        yield (
            f"of the {text_of} the text part is taken, a {names}; what looks at pictures is left out, and students are "
            "text models"
        )
    if layout.hands_on_state:
        yield (
            f"layers of {layout.model_type} hand a state on from token to token, and transformers does not stop it "
            "between the documents of a sequence: teacher and students see what stands before a document there"
        )
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and positions < sequence_length and not _stretched(config):
        yield (
            f"sequences of {sequence_length:,} tokens are longer than the model was made for "
            f"(max_position_embeddings={positions}), and what it says at their ends is no measure of it; "
            f"text.sequence_length={positions} keeps within"
        )


def _stretched(config: Mapping[str, Any]) -> bool:
    """Whether rotary positions are scaled, so that `max_position_embeddings` may be that of before."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    return isinstance(rope, Mapping) and "factor" in str(rope)


def require_positions(path: Path | str, architecture: Architecture, sequence_length: int) -> None:
    """Refuse sequences that are longer than a model's table of learned positions.

    Args:
        path: Of the model, for the message.
        architecture: Its shape.
        sequence_length: Tokens of a sequence.

    Raises:
        PlanError: With both lengths.
    """
    positions = architecture.max_position_embeddings
    if 0 < positions < sequence_length:
        raise PlanError(
            f"{path} has learned {positions:,} positions, fewer than a sequence of {sequence_length:,} tokens has; "
            f"choose a sequence length of {positions:,} or less (text.sequence_length)"
        )
