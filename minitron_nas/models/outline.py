"""What is known of a model before any of its weights is read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from minitron_nas.architecture.config import require_described
from minitron_nas.architecture.costs import count_parameters
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import PlanError
from minitron_nas.families.wrappers import Tower

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
        tower: What stands beside it where it is the text part of a wrapper.
    """

    path: Path | str
    architecture: Architecture
    layout: Layout
    weights_bytes: int
    companions_bytes: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    tower: Tower | None = None

    @classmethod
    def of_shape(cls, name: str, architecture: Architecture, layout: Layout) -> Self:
        """Return the outline of a shape alone, its weights in half precision.

        Args:
            name: What it is called.
            architecture: The shape.
            layout: The table of its family.

        Raises:
            InvalidArchitectureError: If the table does not describe such a shape.
        """
        require_described(architecture, layout)
        return cls(name, architecture, layout, count_parameters(architecture, layout) * _HALF_BYTES)

    @classmethod
    def of_config(
        cls,
        path: Path | str,
        config: dict[str, Any],
        architecture: Architecture,
        layout: Layout,
        tower: Tower | None = None,
    ) -> Self:
        """Return the outline of a model whose config alone is there.

        Args:
            path: Its folder, or its name.
            config: The content of its `config.json`, which says in what type its weights are.
            architecture: Its shape.
            layout: The table of its family.
            tower: What stands beside it where it is the text part of a wrapper.
        """
        dtype = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
        num_bytes = _BYTES_OF_DTYPE.get(dtype, _HALF_BYTES)
        num_bytes *= count_parameters(architecture, layout)
        return cls(path, architecture, layout, num_bytes, config=config, tower=tower)

    @property
    def num_parameters(self) -> int:
        """Number of parameters, tied embeddings counted once."""
        return count_parameters(self.architecture, self.layout)

    def about(self, sequence_length: int, text_only: bool | None = None) -> Iterator[str]:
        """Yield what it means that it is part of a wrapper, hands on a state, or reads more than it was made for.

        Args:
            sequence_length: Tokens of the sequences that it reads.
            text_only: Whether students of a text part are text models; None where none are made of it.
        """
        config = self.config
        yield from self.about_tower(text_only)
        if self.layout.hands_on_state:
            yield (
                f"layers of {self.layout.model_type} hand a state on from token to token, and transformers does not "
                "stop it between the documents of a sequence: teacher and students see what stands before a document "
                "there"
            )
        positions = config.get("max_position_embeddings")
        if isinstance(positions, int) and positions < sequence_length and not _stretched(config):
            yield (
                f"sequences of {sequence_length:,} tokens are longer than the model was made for "
                f"(max_position_embeddings={positions}), and what it says at their ends is no measure of it; "
                f"text.sequence_length={positions} keeps within"
            )

    def about_tower(self, text_only: bool | None) -> Iterator[str]:
        """Yield what becomes of what looks at pictures, where it is the text part of a wrapper.

        Args:
            text_only: Whether students of a text part are text models; None where none are made of it.
        """
        if self.tower is None:
            return
        names = ", ".join(self.config.get("architectures") or [str(self.config.get("model_type"))])
        told = "what looks at pictures is left out"
        if text_only:
            kept = "; text_only=false (--with-tower) keeps it" if self.tower.is_there else ""
            told += f", and students are text models{kept}"
        elif text_only is not None:
            told = (
                f"what looks at pictures stays as it is, and so {kept_for(self.tower, self.architecture)}; sizes "
                "count the text part alone, and nothing but text is trained or measured on"
            )
            if not self.tower.num_bytes:
                told += "; the disk that it takes is not known before its weights are there, and not counted"
        yield f"of the {self.tower.model_type} the text part is taken, a {names}; {told}"

    def require_length(self, sequence_length: int) -> None:
        """Refuse sequences that are longer than a table of learned positions.

        Raises:
            PlanError: With both lengths.
        """
        require_positions(self.path, self.architecture, sequence_length)


def kept_for(tower: Tower, architecture: Architecture) -> str:
    """Say what has to stay of a text part beside which a tower is to stay.

    Args:
        tower: The tower.
        architecture: The text part's shape.
    """
    sizes = [f"{name}={getattr(architecture, name)}" for name in tower.kept_sizes]
    return f"{', '.join(sizes)}{' and the first layers that it feeds' if tower.num_fed_layers else ''} stay"


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
