"""`Architecture`: the shape of a decoder as a frozen value, in Hugging Face's words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from minitron_nas.errors import InvalidArchitectureError

SHAPE_FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
)
"""The fields that pruning may change; all others are the teacher's for ever."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a decoder-only transformer.

    All sizes are counts. `head_dim` is always explicit, because pruning `hidden_size` breaks the
    usual `hidden_size / num_attention_heads`.
    """

    model_type: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        """Refuse a shape that cannot exist.

        Raises:
            InvalidArchitectureError: If a size is below one or the heads do not fill the KV groups.
        """
        for name in (*SHAPE_FIELDS, "head_dim", "vocab_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InvalidArchitectureError(f"{name}={value!r} must be an integer of at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InvalidArchitectureError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}; every KV group needs the same "
                "number of query heads"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a shape from the content of a Hugging Face `config.json`.

        Raises:
            InvalidArchitectureError: If a field that has no default is missing.
        """
        try:
            heads = config["num_attention_heads"]
            return cls(
                model_type=config["model_type"],
                num_hidden_layers=config["num_hidden_layers"],
                hidden_size=config["hidden_size"],
                intermediate_size=config["intermediate_size"],
                num_attention_heads=heads,
                num_key_value_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // heads,
                vocab_size=config["vocab_size"],
                tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
                attention_bias=bool(config.get("attention_bias", False)),
                mlp_bias=bool(config.get("mlp_bias", False)),
            )
        except KeyError as missing:
            raise InvalidArchitectureError(
                f"the config has no {missing}; minitron_nas needs a causal language model's config.json"
            ) from None

    @property
    def heads_per_group(self) -> int:
        """Number of query heads that share one KV group."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def id(self) -> str:
        """A short name that two shapes pruned from one source share only if they are equal."""
        return (
            f"l{self.num_hidden_layers}-h{self.hidden_size}-f{self.intermediate_size}"
            f"-q{self.num_attention_heads}-k{self.num_key_value_heads}"
        )

    def shape(self) -> dict[str, int]:
        """Return the prunable sizes by name."""
        return {name: getattr(self, name) for name in SHAPE_FIELDS}

    def reshaped(self, changes: Mapping[str, int]) -> Self:
        """Return this architecture with some prunable sizes replaced.

        Removing KV groups removes their query heads too, unless `changes` names
        `num_attention_heads`.

        Raises:
            InvalidArchitectureError: If a name is not prunable or a size exceeds this shape's.
        """
        for name, value in changes.items():
            if name not in SHAPE_FIELDS:
                raise InvalidArchitectureError(
                    f"{name!r} is not a prunable size; choose from {', '.join(SHAPE_FIELDS)}"
                )
            if value > getattr(self, name):
                raise InvalidArchitectureError(
                    f"{name}={value} exceeds the source's {getattr(self, name)}; pruning only removes"
                )
        sizes: dict[str, Any] = dict(changes)
        if "num_key_value_heads" in sizes:
            sizes.setdefault("num_attention_heads", sizes["num_key_value_heads"] * self.heads_per_group)
        result = replace(self, **sizes)
        if result.heads_per_group > self.heads_per_group:
            raise InvalidArchitectureError(
                f"num_attention_heads={result.num_attention_heads} over num_key_value_heads="
                f"{result.num_key_value_heads} asks for {result.heads_per_group} query heads a group; "
                f"the source has {self.heads_per_group}"
            )
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return asdict(self)
