"""The grammar of family tables: which axes every tensor of a checkpoint runs along.

A `Layout` lists `TensorRow`s. Each dimension of a row is a product of axes, or several products
one after the other: the rows of a query projection run along KV_GROUPS x GROUP_HEADS x HEAD_DIM,
those of a fused gate and up projection along NEURONS and then NEURONS again. A factor that pruning
never changes is a number, or the key of a number in the config, with a kind of layers before it
(`full_attention.head_dim`) where layers of that kind have another number. Where layers are of several
kinds, rows may stand for layers of one kind only. Parameter counts, checkpoint checks, slicing and the
places where importance is measured are all derived from the rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from math import prod
from typing import Any, Literal, NamedTuple, Self, TypeAlias

from minitron_nas.architecture.kinds import KindsInConfig, is_of, shares
from minitron_nas.architecture.spec import SHAPE_FIELDS, Architecture
from minitron_nas.architecture.widths import AdjustedWidth


class Axis(StrEnum):
    """What a tensor dimension counts, named as in `Architecture`."""

    VOCAB = "vocab_size"
    POSITIONS = "max_position_embeddings"
    LAYERS = "num_hidden_layers"
    HIDDEN = "hidden_size"
    NEURONS = "intermediate_size"
    EXPERTS = "num_experts"
    EXPERT_NEURONS = "moe_intermediate_size"
    SHARED_NEURONS = "num_shared_neurons"
    CONV_CHANNELS = "num_conv_channels"
    WIDE_NEURONS = "num_wide_neurons"
    KV_GROUPS = "num_key_value_heads"
    GROUP_HEADS = "heads_per_group"
    HEAD_DIM = "head_dim"
    MAMBA_GROUPS = "mamba_num_groups"
    MAMBA_GROUP_HEADS = "mamba_group_heads"
    MAMBA_HEAD_DIM = "mamba_head_dim"


LAYERS_VOCAB = "vocab_size_per_layer_input"
"""The key of how many tokens have embeddings of single layers, which lie in one tensor."""

Factor: TypeAlias = Axis | str | int | tuple[str, ...]
"""What a dimension is a product of: axes, and fixed sizes, which are numbers, keys of numbers in the config, or several
keys for the sum of their numbers."""

Sizes: TypeAlias = Mapping[str, Any]
"""Sizes of axes and of fixed keys: integers, or integer arrays of one shape (one entry per candidate)."""


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension of a tensor.

    Attributes:
        parts: What lies one after the other along it; each part is a product of factors, the slowest first.
    """

    parts: tuple[tuple[Factor, ...], ...]

    def __post_init__(self) -> None:
        """Refuse a fixed size that is an axis.

        Raises:
            ValueError: With the axis to write instead.
        """
        for key in self.fixed_keys & set(Axis):
            raise ValueError(f"{key!r} is a size that pruning changes; write Axis.{Axis(key).name} in its place")

    def __add__(self, other: Self) -> Self:
        """Put another dimension behind this one, as fused projections do."""
        return type(self)(self.parts + other.parts)

    def __mul__(self, factor: Factor) -> Self:
        """Return a dimension with as many entries as a factor says for each of this one's."""
        return type(self)(tuple((*part, factor) for part in self.parts))

    def __contains__(self, axis: Axis) -> bool:
        """Whether any part runs along an axis."""
        return any(axis in part for part in self.parts)

    @property
    def axes(self) -> frozenset[Axis]:
        """The axes that any part runs along."""
        return frozenset(factor for part in self.parts for factor in part if isinstance(factor, Axis))

    @property
    def fixed_keys(self) -> frozenset[str]:
        """The keys of fixed sizes of any part."""
        factors = [factor for part in self.parts for factor in part if not isinstance(factor, Axis | int)]
        return frozenset(key for factor in factors for key in ((factor,) if isinstance(factor, str) else factor))

    def size(self, sizes: Sizes) -> Any:
        """Return the number of entries for axis sizes, scalars or arrays."""
        return sum(prod((factor_size(factor, sizes) for factor in part), start=1) for part in self.parts)


def dim(*factors: Factor) -> Dim:
    """Write a dimension as a product, the slowest factor first; of nothing, a dimension of size 1.

    Args:
        *factors: Axes, and fixed sizes: numbers, keys of the config, or several keys for their sum.
    """
    return Dim((factors,))


def factor_size(factor: Factor, sizes: Sizes) -> Any:
    """Return the size of one factor of a dimension.

    Args:
        factor: An axis, a key, keys or a number.
        sizes: Of axes and keys, scalars or arrays.
    """
    if isinstance(factor, tuple):
        return sum(sizes[key] for key in factor)
    return factor if isinstance(factor, int) else sizes[factor]


VOCAB = dim(Axis.VOCAB)
POSITIONS = dim(Axis.POSITIONS)
HIDDEN = dim(Axis.HIDDEN)
NEURONS = dim(Axis.NEURONS)
EXPERTS = dim(Axis.EXPERTS)
EXPERT_NEURONS = dim(Axis.EXPERT_NEURONS)
SHARED_NEURONS = dim(Axis.SHARED_NEURONS)
CONV_CHANNELS = dim(Axis.CONV_CHANNELS)
"""Channels of a convolution: as many as are hidden, but others, which every layer ranks for itself."""
WIDE_NEURONS = dim(Axis.WIDE_NEURONS)
"""Neurons of FFNs in layers that have no keys of their own: as many as in others, or twice as many."""
HEAD_DIM = dim(Axis.HEAD_DIM)
QUERIES = dim(Axis.KV_GROUPS, Axis.GROUP_HEADS, Axis.HEAD_DIM)
KEYS = dim(Axis.KV_GROUPS, Axis.HEAD_DIM)
MAMBA_CHANNELS = dim(Axis.MAMBA_GROUPS, Axis.MAMBA_GROUP_HEADS, Axis.MAMBA_HEAD_DIM)
"""What a Mamba 2 mixer computes: the channels of its heads, which lie in groups as queries do."""
MAMBA_HEADS = dim(Axis.MAMBA_GROUPS, Axis.MAMBA_GROUP_HEADS)
EXPERTS_IN_STACKS = (
    (".mlp.experts.gate_up_proj", (".mlp.experts.{expert}.gate_proj.weight", ".mlp.experts.{expert}.up_proj.weight")),
    (".mlp.experts.down_proj", (".mlp.experts.{expert}.down_proj.weight",)),
)
"""Experts as they lie in memory, all of a layer in one tensor: what gates, then what goes up."""
HEADWISE_QKV = dim(Axis.KV_GROUPS, 3, Axis.HEAD_DIM)
"""Queries, keys and values of the first head, then those of the second, and so on."""
GATE_UP_BY_NEURON = dim(Axis.NEURONS, 2)
"""What gates the first neuron and what goes up to it, then those of the second, and so on."""


NEURON_AXES = {
    Axis.NEURONS: "neurons",
    Axis.EXPERT_NEURONS: "expert_neurons",
    Axis.SHARED_NEURONS: "shared_neurons",
    Axis.CONV_CHANNELS: "conv_channels",
    Axis.WIDE_NEURONS: "wide_neurons",
}
"""The axes of neurons, and of what is ranked as they are, each with what its scores and its ranking are called."""


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor of the checkpoint, or one per layer and expert where the name holds `{layer}`, `{expert}`.

    A name that ends in `[{expert}]` is that of a stack: the file holds one tensor of all experts, the slowest dimension
    of which counts them, and each slice of it is a tensor of this table.

    Attributes:
        name: The tensor's name in a checkpoint.
        dims: Its dimensions, in the checkpoint's order.
        when: A boolean field of `Architecture`, or key of the config, that must be true for the tensor to exist; or a
            fixed size that must not be 0.
        unless: One that must be false.
        inputs_first: Whether it is a matrix that is stored (inputs, outputs) where others of the table are not.
        is_norm: Whether it is the gain of a norm over its one dimension.
        on_branch: Of a norm over hidden channels: whether it acts on what a layer adds to the residual
            stream, and not on the stream itself.
        kinds: The kinds of layers that have the tensor; none for all.
        is_buffer: Whether it is no parameter, but a buffer, which no optimizer changes and no total counts.
    """

    name: str
    dims: tuple[Dim, ...]
    when: str | None = None
    unless: str | None = None
    inputs_first: bool = False
    is_norm: bool = False
    on_branch: bool = False
    kinds: tuple[str, ...] = ()
    is_buffer: bool = False

    @property
    def per_layer(self) -> bool:
        """Whether the tensor exists once per decoder layer."""
        return "{layer}" in self.name

    @property
    def per_expert(self) -> bool:
        """Whether the tensor exists once per expert of a layer."""
        return "{expert}" in self.name

    @property
    def counts_tokens(self) -> bool:
        """Whether a dimension counts tokens: of an embedding, of all layers or of single ones, or an output head."""
        return any(Axis.VOCAB in each or LAYERS_VOCAB in each.fixed_keys for each in self.dims)

    @property
    def is_slice(self) -> bool:
        """Whether the file holds it as one entry of a stack, the tensor of all experts of a layer."""
        return self.name.endswith("[{expert}]")

    @property
    def module(self) -> str:
        """The name without what follows its last dot."""
        return self.name.rpartition(".")[0]

    def exists(self, architecture: Architecture) -> bool:
        """Whether a checkpoint of this architecture holds the tensor.

        Args:
            architecture: The checkpoint's shape; says which optional tensors there are.
        """
        needed = self.when is None or architecture.says(self.when)
        excluded = self.unless is not None and architecture.says(self.unless)
        return bool(needed and not excluded)

    def in_kind(self, kind: str) -> bool:
        """Whether layers of a kind have the tensor."""
        return not self.kinds or kind in self.kinds

    def shape(self, architecture: Architecture) -> tuple[int, ...]:
        """Return the tensor's shape in a checkpoint of this architecture."""
        sizes = axis_sizes(architecture)
        return tuple(int(dim.size(sizes)) for dim in self.dims)

    def elements(self, sizes: Sizes) -> Any:
        """Return how many numbers one such tensor holds, for axis sizes, scalars or arrays."""
        return prod((dim.size(sizes) for dim in self.dims), start=1)


def row(
    name: str, *dims: Dim, when: str | None = None, unless: str | None = None, inputs_first: bool = False
) -> TensorRow:
    """Write one line of a family table: dimensions in the checkpoint's order.

    Args:
        name: The tensor's name in a checkpoint, with `{layer}` and `{expert}` where it has them, and with `[{expert}]`
            behind it where it is a slice of a stack.
        *dims: In the checkpoint's order; of a slice without the dimension that counts experts.
        when: A boolean field of `Architecture`, or key of the config, that must be true for the tensor to exist.
        unless: One that must be false.
        inputs_first: Whether it is a matrix that is stored (inputs, outputs) where others of the table are not.
    """
    return TensorRow(name, dims, when, unless, inputs_first)


def norm(name: str, over: Dim, on_branch: bool = False, when: str | None = None) -> TensorRow:
    """Write the line of a norm's gain; what reads the norm's output stands below it, up to the next norm.

    Args:
        name: The gain's name in a checkpoint.
        over: What it normalises.
        on_branch: Whether it acts on what a layer adds to the residual stream.
        when: As in `row`.
    """
    return TensorRow(name, (over,), when, is_norm=True, on_branch=on_branch)


def buffer(name: str, *dims: Dim) -> TensorRow:
    """Write the line of a tensor that is no parameter: the file holds it, and no optimizer changes it.

    Args:
        name: The tensor's name in a checkpoint.
        *dims: In the checkpoint's order.
    """
    return TensorRow(name, dims, is_buffer=True)


def only(kinds: str | tuple[str, ...], *rows: TensorRow) -> tuple[TensorRow, ...]:
    """Write lines for the tensors of layers of some kinds.

    Args:
        kinds: One kind or several, in the words of the config.
        *rows: The lines.
    """
    each = (kinds,) if isinstance(kinds, str) else kinds
    return tuple(replace(table_row, kinds=each) for table_row in rows)


class TensorPlace(NamedTuple):
    """One tensor of a checkpoint, or slice of one; layer and expert are None where there is one tensor for all."""

    name: str
    row: TensorRow
    layer: int | None
    expert: int | None


def stored_tensor(name: str) -> str:
    """Return the name of the tensor in the file that holds a tensor of a table: of a slice that of its stack."""
    return name.partition("[")[0]


@dataclass(frozen=True, slots=True)
class Layout:
    """The table of one model family.

    Attributes:
        model_type: The family's `model_type` in `config.json`.
        rows: Every tensor of a checkpoint.
        norm: What the norms compute: `rms` multiplies by the gain, `rms_plus_one` by 1 + gain; `layer`
            and `layer_plus_one` also subtract the mean over channels.
        scales_embeddings: Whether embeddings are multiplied by the square root of `hidden_size`.
        multiplies_logits: Whether `logits_scaling` of the config multiplies logits; Granite's divides them.
        conv1d: Whether the matrices of the layers are stored (inputs, outputs), as Conv1D does.
        head_dim_is_derived: Whether the model takes `head_dim` to be hidden_size / num_attention_heads.
        hidden_multiple_of_heads: Whether stock transformers refuses a `hidden_size` that is no
            multiple of `num_attention_heads`.
        hidden_divides_mixer: Whether stock transformers wants the channels of a Mamba mixer to be a whole number
            (`mamba_expand`) times `hidden_size`.
        mixer_width: The key of how many channels a Mamba mixer has, where the config says that beside its heads.
        longrope_follows_heads: Whether stock transformers takes the number of longrope's factors from
            hidden_size // num_attention_heads, whatever `head_dim` says.
        finds_borders: Whether stock transformers masks attention across the borders of packed documents, which it finds
            in the positions; where not, this package hands it the masks.
        config_keys: Where `config.json` has a field of `Architecture` under other names, all of them;
            no name where it does not hold the field.
        defaults: What transformers takes where a config leaves a field of `Architecture` out.
        ffn_ratio: Hidden sizes of an FFN whose size the config leaves out; 0 where it has to say it.
        ffn_width: How transformers computes the neurons of an FFN from what the config says; None where it says them.
        requires: Keys of `config.json` whose other values this table does not describe.
        renamed: Parts of tensor names that differ in the loaded model: (in the checkpoint, in the model); of a tensor
            that transformers splits as it loads, any one of the modules that then read the same.
        aliases: Older names: (beginning of a name of this table, what checkpoints may have instead).
        ignored: Name endings of tensors that old checkpoints carry and transformers drops.
        ignored_modules: Name beginnings of those that checkpoints carry beside the model, such as what predicts further
            tokens at a time, and transformers drops.
        stacked: Name endings of tensors in which checkpoints may hold all experts of a layer, one after the other,
            each with the endings of the rows that lie one after the other in each expert's part.
        groups_when: What the config has to say, by its keys, for the router to pick groups of experts before it picks
            experts; nothing where it does so wherever there are groups.
        ranks_groups_by_best: Whether a router that picks groups ranks them by the best expert of each, not by the two
            best.
        cached: What a layer with attention keeps of a token of context, one dimension after the other; one that reads
            the keys and values of another layer (`SharedKeys`) keeps nothing.
        fixed_attention: Kinds of layers whose attention has sizes of its own, all of them fixed, with what such a layer
            keeps of a token of context.
        states: Kinds of layers that hand on a state, each with what such a layer keeps of a sequence, however long that
            is: its state, and what its convolution reads again. Where all layers are alike, the kind is the empty word.
        fixed: Sizes that pruning leaves as they are, although tensors run along them.
        reasons: Why a table describes no other values of a key that it requires.
        drops_later_layers: Whether checkpoints carry layers behind the last, which predict further tokens at a time and
            which transformers drops.
        kinds: How the config tells of what kind each layer is; None where all layers are alike.
        last_kind: What stock transformers takes the last layer for, whatever the config says: the first word of its
            kind; empty where it may be of any kind.
        epsilon: The key of the norms' epsilon.
        layers_return_tuples: Whether transformers takes a layer's output for a tuple, hidden states first.
        logits_tolerance: By how much the conformance suite lets logits in float64 be off where they have to be equal,
            because transformers computes norms, rotary positions and states in float32.
    """

    model_type: str
    rows: tuple[TensorRow, ...]
    norm: Literal["rms", "rms_plus_one", "layer", "layer_plus_one"] = "rms"
    scales_embeddings: bool = False
    multiplies_logits: bool = False
    conv1d: bool = False
    head_dim_is_derived: bool = False
    hidden_multiple_of_heads: bool = False
    hidden_divides_mixer: bool = False
    mixer_width: str = ""
    longrope_follows_heads: bool = False
    finds_borders: bool = True
    config_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ffn_ratio: int = 0
    ffn_width: AdjustedWidth | None = None
    requires: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    ignored_modules: tuple[str, ...] = ()
    stacked: tuple[tuple[str, tuple[str, ...]], ...] = ()
    groups_when: Mapping[str, Any] = field(default_factory=dict)
    ranks_groups_by_best: bool = False
    cached: Dim = KEYS + KEYS
    fixed_attention: Mapping[str, Dim] = field(default_factory=dict)
    states: Mapping[str, Dim] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    drops_later_layers: bool = False
    kinds: KindsInConfig | None = None
    last_kind: str = ""
    epsilon: str = "rms_norm_eps"
    layers_return_tuples: bool = False
    logits_tolerance: float = 5e-6

    def tensors(self, architecture: Architecture) -> Iterator[TensorPlace]:
        """Yield every tensor of a checkpoint of this architecture.

        Args:
            architecture: The checkpoint's shape.
        """
        for table_row in self.rows:
            if table_row.exists(architecture):
                layers = _layers_with(table_row, architecture) if table_row.per_layer else (None,)
                experts = range(architecture.num_experts) if table_row.per_expert else (None,)
                for layer in layers:
                    for expert in experts:
                        name = table_row.name.format(layer=layer, expert=expert)
                        yield TensorPlace(name, table_row, layer, expert)

    def stored_names(self, name: str) -> Iterator[str]:
        """Yield the names under which a checkpoint may hold a tensor, this table's own first."""
        yield name
        for own, older in self.aliases:
            if name.startswith(own):
                yield older + name.removeprefix(own)

    def unstacked(self, name: str) -> tuple[str, ...]:
        """Return the names, with `{expert}`, of what lies in each expert's part of a tensor; none for any other tensor.

        Args:
            name: Of a tensor of a checkpoint.
        """
        for ending, parts in self.stacked:
            if name.endswith(ending):
                before = name.removesuffix(ending)
                return tuple(f"{before}{part}" for part in parts)
        return ()

    def config_names(self, field_name: str) -> tuple[str, ...]:
        """Return the keys under which `config.json` may hold a field of `Architecture`."""
        return self.config_keys.get(field_name, (field_name,))

    def axes(self) -> frozenset[Axis]:
        """Return every axis that a tensor of the family runs along."""
        return frozenset(axis for r in self.rows for each in r.dims for axis in each.axes)

    def fixed_keys(self) -> frozenset[str]:
        """Return the keys of the config whose numbers are fixed sizes of the family."""
        dims = [*(each for r in self.rows for each in r.dims), *self.states.values()]
        return frozenset(key for each in dims for key in each.fixed_keys)

    def fixed_keys_of(self, said: Mapping[str, Any]) -> frozenset[str]:
        """Return those of a model's fixed sizes: not those of tensors alone that a size of 0 leaves out.

        Args:
            said: Sizes by key; one that is missing is 0.
        """
        out = {key for key in self.fixed_keys() if not said.get(key)}
        dims = [each for r in self.rows if r.when not in out for each in r.dims]
        return frozenset(key for each in (*dims, *self.states.values()) for key in each.fixed_keys)

    def switches(self) -> frozenset[str]:
        """Return the keys of the config, neither fields of `Architecture` nor sizes, that say whether tensors exist."""
        named = {name for r in self.rows for name in (r.when, r.unless) if name is not None}
        return frozenset(named - {each.name for each in fields(Architecture)} - self.fixed_keys())

    def known_kinds(self) -> frozenset[str]:
        """Return the kinds of layers that the table describes."""
        return frozenset(kind for r in self.rows for kind in r.kinds)

    def shape_fields(self) -> tuple[str, ...]:
        """Return the sizes that pruning may change in this family, in the order of SHAPE_FIELDS."""
        names = {axis.value for axis in self.axes()} | {"num_hidden_layers"}
        if Axis.GROUP_HEADS in self.axes() or Axis.KV_GROUPS in self.axes():
            names.add("num_attention_heads")
        if Axis.SHARED_NEURONS in self.axes() and self.config_names(_SHARED_WIDTH):
            names.add(_SHARED_WIDTH)
        if self.has_mamba:
            names.add(_MAMBA_HEADS)
        return tuple(name for name in SHAPE_FIELDS if name in names and name not in self.fixed)

    def shape_fields_of(self, architecture: Architecture) -> tuple[str, ...]:
        """Return the sizes that pruning may change in a model of the family: those of which some layer has tensors.

        Args:
            architecture: The model's shape; all its layers may be of kinds that lack an axis.
        """
        sizes = {axis: axis.value for axis in (*NEURON_AXES, Axis.EXPERTS, Axis.MAMBA_HEAD_DIM)} | {
            Axis.MAMBA_GROUP_HEADS: _MAMBA_HEADS,
            Axis.SHARED_NEURONS: _SHARED_WIDTH,
        }
        absent = {name for axis, name in sizes.items() if not self.runs_along(axis, architecture)}
        return tuple(name for name in self.shape_fields() if name not in absent)

    def column_fields(self) -> tuple[str, ...]:
        """Return the sizes that columns of shapes have: those that pruning may change, and heads even if they stay."""
        return tuple(name for name in SHAPE_FIELDS if name in {*self.shape_fields(), *_HEADS})

    def inputs_first(self, table_row: TensorRow) -> bool:
        """Whether a layer's matrix is stored (inputs, outputs)."""
        return self.conv1d or table_row.inputs_first

    def input_dim(self, table_row: TensorRow) -> Dim:
        """Return the dimension of a layer's matrix that its inputs run along."""
        return table_row.dims[0 if self.inputs_first(table_row) else -1]

    def output_dim(self, table_row: TensorRow) -> Dim:
        """Return the dimension of a layer's matrix that its outputs run along."""
        return table_row.dims[-1 if self.inputs_first(table_row) else 0]

    @property
    def norm_centres(self) -> bool:
        """Whether the norms subtract the mean over channels."""
        return self.norm.startswith("layer")

    @property
    def norm_offset(self) -> float:
        """What the norms add to their stored gain."""
        return 1.0 if self.norm.endswith("plus_one") else 0.0

    def is_head(self, table_row: TensorRow) -> bool:
        """Whether a tensor is the output head of untied models."""
        return table_row.dims == (VOCAB, HIDDEN) and table_row.unless is not None

    @property
    def embedding(self) -> TensorRow:
        """The token embedding."""
        return next(r for r in self.rows if r.dims == (VOCAB, HIDDEN) and not self.is_head(r))

    def embedding_of_layers(self, architecture: Architecture) -> TensorRow | None:
        """Return the embedding in which every layer of a model has a block; None where there is none.

        Args:
            architecture: The model's shape.
        """
        rows = (r for r in self.rows if r.counts_tokens and self.is_of_all_layers(r))
        return next((r for r in rows if r.exists(architecture)), None)

    def is_of_all_layers(self, table_row: TensorRow) -> bool:
        """Whether a tensor holds a block of each layer."""
        return any(Axis.LAYERS in each for each in table_row.dims)

    def reads_hidden(self, table_row: TensorRow) -> bool:
        """Whether a tensor is a matrix whose inputs are hidden channels."""
        return self.is_head(table_row) or (_is_matrix(table_row) and self.input_dim(table_row) == HIDDEN)

    def writes_hidden(self, table_row: TensorRow) -> bool:
        """Whether a tensor is an output projection: a matrix of a layer whose outputs are hidden channels."""
        return _is_matrix(table_row) and self.output_dim(table_row) == HIDDEN

    def stream_norms(self) -> tuple[TensorRow, ...]:
        """Return the gains of the norms that read the residual stream."""
        return tuple(r for r in self.rows if r.is_norm and r.dims == (HIDDEN,) and not r.on_branch)

    def norm_before(self, table_row: TensorRow) -> TensorRow | None:
        """Return the gain of the norm whose output a matrix reads: the last one above it that its layers have.

        Where that acts on what a layer adds, the matrix reads the stream behind it, and no norm.

        Args:
            table_row: A matrix that reads hidden channels, of this table.
        """
        for above in reversed(self.rows[: self.rows.index(table_row)]):
            is_norm = above.is_norm and above.dims == (HIDDEN,)
            if is_norm and all(above.in_kind(kind) for kind in table_row.kinds):
                return None if above.on_branch else above
        return None

    def norm_behind(self, table_row: TensorRow, architecture: Architecture) -> TensorRow | None:
        """Return the gain of the norm that acts on what an output projection puts out; None where none does.

        Projections of one block, such as those of experts and of a shared one, have the norm behind the last of them.

        Args:
            table_row: A matrix that writes hidden channels, of this table.
            architecture: The model's shape; says whether it has such a norm.
        """
        for row in self.rows[self.rows.index(table_row) + 1 :]:
            elsewhere = self.writes_hidden(row) and self._block_of(row) != self._block_of(table_row)
            if row.on_branch or elsewhere:
                return row if row.on_branch and row.exists(architecture) else None
        return None

    def _block_of(self, table_row: TensorRow) -> str:
        """Return the name of the module within a layer that a tensor lies in, such as `mlp`."""
        return self.module_of(table_row).removeprefix(f"{self.layer_module}.").partition(".")[0]

    def norm_of_bias(self, table_row: TensorRow) -> TensorRow | None:
        """Return the gain of the norm that a bias belongs to; None for any other tensor."""
        if table_row.is_norm or table_row.dims != (HIDDEN,):
            return None
        return next((r for r in self.rows if r.is_norm and r.module == table_row.module), None)

    def readers(self, kind: str = "") -> tuple[TensorRow, ...]:
        """Return matrices that read the hidden channels of a layer: one of its attention or mixer, one of its FFN.

        Args:
            kind: Of the layer, where layers are of several kinds; one of them may lack either.
        """
        matrices = [r for r in self.rows if _is_matrix(r) and self.input_dim(r) == HIDDEN and r.in_kind(kind)]
        ffn = [r for r in matrices if not self.output_dim(r).axes.isdisjoint(_FFN_AXES)]
        attention = [r for r in matrices if Axis.KV_GROUPS in self.output_dim(r)]
        mixer = [r for r in matrices if self.output_dim(r).fixed_keys or Axis.CONV_CHANNELS in self.output_dim(r)]
        if ffn and mixer and self.norm_before(mixer[0]) == self.norm_before(ffn[0]):
            mixer = []  # what makes the latents that experts read
        return (*(attention or mixer)[:1], *ffn[:1])

    def writer(self, axis: Axis) -> TensorRow:
        """Return the matrix of a layer that reads an axis and writes the hidden channels, or latents of experts.

        Where layers of several kinds have such a matrix with other outputs, it is the first of them.

        Args:
            axis: GROUP_HEADS for attention, MAMBA_GROUP_HEADS for a Mamba mixer, one of `neuron_axes` for an FFN or a
                convolution.
        """
        found = self._writers_of(axis)
        (name,) = {r.name for r in found}
        return next(r for r in found if r.name == name)

    def _writers_of(self, axis: Axis) -> list[TensorRow]:
        return [r for r in self.rows if _is_matrix(r) and axis in self.input_dim(r)]

    def attentions(self) -> Iterator[tuple[tuple[str, ...], Dim, Dim]]:
        """Yield kinds of layers with attention, what its output projection reads, and what it keeps of a token.

        Layers that read the keys and values of others keep none.
        """
        output = self.writer(Axis.GROUP_HEADS)
        outputs = [(output, self.cached)]
        for kind, cached in self.fixed_attention.items():
            own = [r for r in self.rows if r.kinds and all(is_of(each, kind) for each in r.kinds)]
            outputs += [(r, cached) for r in own if self.writes_hidden(r)]
        for output, cached in outputs:
            sharing = tuple(kind for kind in output.kinds if shares(kind))
            yield tuple(kind for kind in output.kinds if kind not in sharing), self.input_dim(output), cached
            if sharing:
                yield sharing, self.input_dim(output), dim(0)

    def writers(self) -> tuple[TensorRow, ...]:
        """Return the output projections that lose inputs when heads and neurons leave: attention's first."""
        mixers = (Axis.MAMBA_GROUP_HEADS,) if self.has_mamba else ()
        axes = (Axis.GROUP_HEADS, *mixers, *self.neuron_axes)
        return tuple(r for axis in axes for r in self._writers_of(axis))

    def other_writers(self) -> tuple[TensorRow, ...]:
        """Return what writes to the residual stream beside attention and FFNs: output projections of mixers."""
        own = {r for axis in (Axis.GROUP_HEADS, *self.neuron_axes) for r in self._writers_of(axis)}
        return tuple(r for r in self.rows if self.writes_hidden(r) and r not in own)

    def has_axis(self, axis: Axis, kind: str) -> bool:
        """Whether tensors of layers of a kind run along an axis.

        Args:
            axis: The axis.
            kind: Of the layers.
        """
        return any(r.per_layer and r.in_kind(kind) and axis in each for r in self.rows for each in r.dims)

    def runs_along(self, axis: Axis, architecture: Architecture) -> bool:
        """Whether tensors of some layer of a model run along an axis.

        Args:
            axis: The axis.
            architecture: The model's shape; all its layers may be of kinds that lack the axis.
        """
        return any(self.has_axis(axis, kind) for kind in set(architecture.kinds))

    def neuron_axes_of(self, architecture: Architecture) -> tuple[Axis, ...]:
        """Return the axes of neurons, and of what is ranked as they are, that some layer of a model has.

        Args:
            architecture: The model's shape.
        """
        return tuple(axis for axis in self.neuron_axes if self.runs_along(axis, architecture))

    @property
    def neuron_axes(self) -> tuple[Axis, ...]:
        """The axes of neurons, and of what is ranked as they are, that the family has."""
        return tuple(axis for axis in NEURON_AXES if axis in self.axes())

    @property
    def neuron_axis(self) -> Axis:
        """The axis of FFN neurons, or of the neurons of each expert."""
        return Axis.EXPERT_NEURONS if Axis.EXPERT_NEURONS in self.axes() else Axis.NEURONS

    def in_experts(self, axis: Axis) -> bool:
        """Whether an axis of neurons is one that each expert ranks for itself."""
        return any(r.per_expert and axis in each for r in self.rows for each in r.dims)

    @property
    def has_mamba(self) -> bool:
        """Whether some layers have a Mamba 2 mixer, the heads of which can be pruned."""
        return Axis.MAMBA_GROUP_HEADS in self.axes()

    @property
    def hands_on_state(self) -> bool:
        """Whether layers hand a state on from token to token, and from one document of a sequence to the next."""
        return bool(self.states)

    @property
    def has_experts(self) -> bool:
        """Whether the FFN consists of experts."""
        return Axis.EXPERTS in self.axes()

    @property
    def layer_module(self) -> str:
        """Module name, with `{layer}`, of one decoder layer."""
        row = next(r for r in self.rows if r.per_layer)
        name = self.module_of(row)
        return name[: name.index("{layer}") + len("{layer}")]

    def module_of(self, table_row: TensorRow) -> str:
        """Return the name, with `{layer}`, of the module of the loaded model that holds a tensor.

        Args:
            table_row: Of this table; all experts of a layer are one module.
        """
        name = table_row.name
        for stored, loaded in self.renamed:
            name = name.replace(stored, loaded)
        return name.rpartition(".")[0].partition(".{expert}")[0]


_FFN_AXES = (Axis.NEURONS, Axis.EXPERT_NEURONS, Axis.SHARED_NEURONS, Axis.WIDE_NEURONS, Axis.EXPERTS)
_HEADS = ("num_attention_heads", "num_key_value_heads")
_MAMBA_HEADS = "mamba_num_heads"
_SHARED_WIDTH = "shared_expert_intermediate_size"


def _is_matrix(table_row: TensorRow) -> bool:
    return table_row.per_layer and len(table_row.dims) == 2


def _layers_with(table_row: TensorRow, architecture: Architecture) -> list[int]:
    return [layer for layer, kind in enumerate(architecture.kinds) if table_row.in_kind(kind)]


def axis_sizes(architecture: Architecture) -> dict[str, int]:
    """Return the sizes of all axes and of the family's fixed keys.

    Args:
        architecture: A shape.
    """
    return {axis: getattr(architecture, axis.value) for axis in Axis} | dict(architecture.fixed_sizes)
