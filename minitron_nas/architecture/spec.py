"""`Architecture`: the shape of a decoder as a frozen value, in Hugging Face's words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from minitron_nas.architecture.kinds import best_of_each_kind
from minitron_nas.errors import InvalidArchitectureError

SHAPE_FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_experts",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "mamba_num_heads",
    "mamba_head_dim",
)
"""The fields that pruning may change; all others are the teacher's for ever."""

SHAPE_LETTERS = dict(zip(SHAPE_FIELDS, "lhfqkemsnp", strict=True))
"""What stands for them in the name of a shape."""

EXPERT_FIELDS = ("num_experts", "moe_intermediate_size", "shared_expert_intermediate_size")
"""Those that are 0 in families without experts."""

MAMBA_FIELDS = ("mamba_num_heads", "mamba_head_dim")
"""Those that are 0 in families without Mamba mixers."""

MIXER_FIELDS = (*MAMBA_FIELDS, "mamba_num_groups")
"""The same, with what pruning leaves as it is: a mixer has all of them, or there is none."""

_OF_SOME_FAMILIES = (
    "shared_expert_intermediate_size", "num_expert_groups", "num_groups_per_tok", "num_shared_experts", "layer_kinds",
    "fixed_sizes", "double_wide_ffn", *MIXER_FIELDS,
)  # fmt: skip
"""Fields that are left out of plain values where they are empty."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a decoder-only transformer.

    All sizes are counts. `head_dim` is always explicit, because pruning `hidden_size` breaks the
    usual `hidden_size / num_attention_heads`. What a family does not have is 0. Of two shapes with the same sizes
    the layers may follow one another in another order, if they are of several kinds: that is no difference.
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
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    """Neurons of what every token is sent to beside its experts; 0 where `num_shared_experts` says how many."""
    num_expert_groups: int = 0
    """Groups of equally many experts, of which a router picks some before it picks experts; 0 where there are none."""
    num_groups_per_tok: int = 0
    """Groups that a router picks for a token; 0 where it does not pick groups."""
    num_shared_experts: int = 0
    """How many times an expert's neurons what every token is sent to has, if it follows from those."""
    mamba_num_heads: int = 0
    mamba_head_dim: int = 0
    """Channels of each head of a Mamba mixer."""
    mamba_num_groups: int = 0
    """Groups of equally many heads of a Mamba mixer, each with what it writes into states and reads from them."""
    max_position_embeddings: int = 0
    longrope: bool = False
    """Whether the config lists longrope's factors, one for each pair of rotated channels."""
    double_wide_ffn: bool = False
    """Whether FFNs of the layers that have no keys of their own have twice the neurons of others."""
    layer_kinds: Sequence[str] = field(default=(), compare=False)
    """The kind of each layer, in the config's words; empty where all are alike."""
    fixed_sizes: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Sizes and switches that pruning leaves as they are, by the config's keys."""

    def __post_init__(self) -> None:
        """Refuse a shape that cannot exist.

        Raises:
            InvalidArchitectureError: If a size is too small, heads do not fill their groups, or not every layer has a
                kind.
        """
        mixers = () if any(getattr(self, name) for name in MIXER_FIELDS) else MIXER_FIELDS
        for name in (*SHAPE_FIELDS, "mamba_num_groups", "head_dim", "vocab_size"):
            value, least = getattr(self, name), 0 if name in (*EXPERT_FIELDS, *mixers) else 1
            if type(value) is not int or value < least:
                raise InvalidArchitectureError(f"{name}={value!r} must be an integer of at least {least}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InvalidArchitectureError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}; every KV group needs the same "
                "number of query heads"
            )
        if self.mamba_num_groups and self.mamba_num_heads % self.mamba_num_groups:
            raise InvalidArchitectureError(
                f"mamba_num_heads={self.mamba_num_heads} is not a multiple of the mixers' {self.mamba_num_groups} "
                "groups; every group needs the same number of heads"
            )
        if self.layer_kinds and len(self.layer_kinds) != self.num_hidden_layers:
            raise InvalidArchitectureError(
                f"layer_kinds names {len(self.layer_kinds)} layers, but num_hidden_layers={self.num_hidden_layers}; "
                "name one kind for each layer"
            )

    @property
    def heads_per_group(self) -> int:
        """Number of query heads that share one KV group."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def mamba_group_heads(self) -> int:
        """Number of heads of a Mamba mixer that share one group."""
        return self.mamba_num_heads // max(1, self.mamba_num_groups)

    @property
    def mamba_channels(self) -> int:
        """Channels of all heads of a Mamba mixer."""
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def id(self) -> str:
        """A short name that two shapes pruned from one source share only if they are equal."""
        return shape_id({name: getattr(self, name) for name in SHAPE_FIELDS})

    @property
    def num_shared_neurons(self) -> int:
        """Neurons of what every token is sent to beside its experts."""
        return self.shared_expert_intermediate_size or self.num_shared_experts * self.moe_intermediate_size

    @property
    def num_conv_channels(self) -> int:
        """Channels of a convolution, where layers have one: as many as are hidden."""
        return self.hidden_size

    @property
    def num_wide_neurons(self) -> int:
        """Neurons of an FFN in layers that have no keys of their own: as many as in others, or twice as many."""
        return self.intermediate_size * (1 + self.double_wide_ffn)

    @property
    def ffn_field(self) -> Literal["intermediate_size", "moe_intermediate_size"]:
        """The field that counts the neurons of an FFN, or of each expert."""
        return "moe_intermediate_size" if self.moe_intermediate_size else "intermediate_size"

    def sizes(self) -> dict[str, int]:
        """Return the prunable sizes by name, without those of experts where there are none."""
        names = [name for name in SHAPE_FIELDS if self.num_experts or name not in EXPERT_FIELDS]
        return {name: size for name in names if (size := getattr(self, name)) or name not in _OF_SOME_FAMILIES}

    def says(self, switch: str) -> bool:
        """Whether a field, or a key of the config, is true, or a size above 0; one that the shape lacks is not.

        Args:
            switch: Its name.
        """
        return bool(self.fixed_sizes[switch] if switch in self.fixed_sizes else getattr(self, switch, False))

    @property
    def kinds(self) -> Sequence[str]:
        """The kind of each layer; the same empty word for all where they are alike."""
        return self.layer_kinds or ("",) * self.num_hidden_layers

    def with_layers(self, layers: Sequence[int]) -> Self:
        """Return the architecture of a model of some of these layers.

        Args:
            layers: Their indices, in the order of the model.
        """
        kinds = tuple(self.layer_kinds[layer] for layer in layers) if self.layer_kinds else ()
        return replace(self, num_hidden_layers=len(layers), layer_kinds=kinds)

    def reshaped(self, changes: Mapping[str, int]) -> Self:
        """Return this architecture with some prunable sizes replaced.

        Removing KV groups removes their query heads too, unless `changes` names
        `num_attention_heads`; where every group has one head, removing heads removes their groups.
        Of fewer layers there are as many of each kind as `kept_of_each_kind` says.

        Raises:
            InvalidArchitectureError: If a name is not prunable, or a size exceeds this shape's or leaves nothing of it.
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
            if value < min(1, getattr(self, name)):
                raise InvalidArchitectureError(f"{name}={value} must be an integer of at least 1")
        sizes: dict[str, Any] = dict(changes)
        if "num_key_value_heads" in sizes:
            sizes.setdefault("num_attention_heads", sizes["num_key_value_heads"] * self.heads_per_group)
        elif "num_attention_heads" in sizes and self.heads_per_group == 1:
            sizes["num_key_value_heads"] = sizes["num_attention_heads"]
        shallow = self
        if self.layer_kinds and sizes.get("num_hidden_layers", 0) > 0:
            every = range(self.num_hidden_layers)  # which stay is not known here; any of a kind stand for them
            shallow = self.with_layers(best_of_each_kind(self.layer_kinds, every, sizes["num_hidden_layers"]))
        result = replace(shallow, **sizes)
        if result.heads_per_group > self.heads_per_group:
            raise InvalidArchitectureError(
                f"num_attention_heads={result.num_attention_heads} over num_key_value_heads="
                f"{result.num_key_value_heads} asks for {result.heads_per_group} query heads a group; "
                f"the source has {self.heads_per_group}"
            )
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        values = asdict(self)
        return {name: value for name, value in values.items() if value or name not in _OF_SOME_FAMILIES}


def shape_id(sizes: Mapping[str, int | None]) -> str:
    """Return the name of a shape.

    Args:
        sizes: Those of `SHAPE_FIELDS` that it has; 0, None or nothing for the others.
    """
    always = {"moe_intermediate_size"} if sizes.get("num_experts") else set[str]()
    told = {name: sizes.get(name) or 0 for name in SHAPE_FIELDS}
    return "-".join(f"{SHAPE_LETTERS[name]}{size}" for name, size in told.items() if size or name in always)
