"""The grammar of family tables: which axes every tensor of a checkpoint runs along.

A `Layout` lists `TensorRow`s. Each dimension of a row is a product of axes, or several products
one after the other: the rows of a query projection run along KV_GROUPS x GROUP_HEADS x HEAD_DIM,
those of a fused gate and up projection along NEURONS and then NEURONS again. Parameter counts,
checkpoint checks, slicing and the places where importance is measured are all derived from the rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from typing import Any, Literal, NamedTuple, Self, TypeAlias

from minitron_nas.architecture.spec import SHAPE_FIELDS, Architecture


class Axis(StrEnum):
    """What a tensor dimension counts; all but QKV are named as in `Architecture`."""

    VOCAB = "vocab_size"
    POSITIONS = "max_position_embeddings"
    HIDDEN = "hidden_size"
    NEURONS = "intermediate_size"
    EXPERTS = "num_experts"
    EXPERT_NEURONS = "moe_intermediate_size"
    KV_GROUPS = "num_key_value_heads"
    GROUP_HEADS = "heads_per_group"
    HEAD_DIM = "head_dim"
    QKV = "query_key_value"


Sizes: TypeAlias = Mapping[Axis, Any]
"""Axis sizes: integers, or integer arrays of one shape (one entry per candidate)."""


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension of a tensor.

    Attributes:
        parts: What lies one after the other along it; each part is a product of axes, the slowest first.
    """

    parts: tuple[tuple[Axis, ...], ...]

    def __add__(self, other: Self) -> Self:
        """Put another dimension behind this one, as fused projections do."""
        return type(self)(self.parts + other.parts)

    def __contains__(self, axis: Axis) -> bool:
        """Whether any part runs along an axis."""
        return any(axis in part for part in self.parts)

    def size(self, sizes: Sizes) -> Any:
        """Return the number of entries for axis sizes, scalars or arrays."""
        return sum(prod((sizes[axis] for axis in part), start=1) for part in self.parts)


def dim(*axes: Axis) -> Dim:
    """Write a dimension as a product of axes, the slowest first."""
    return Dim((axes,))


VOCAB = dim(Axis.VOCAB)
POSITIONS = dim(Axis.POSITIONS)
HIDDEN = dim(Axis.HIDDEN)
NEURONS = dim(Axis.NEURONS)
EXPERTS = dim(Axis.EXPERTS)
EXPERT_NEURONS = dim(Axis.EXPERT_NEURONS)
HEAD_DIM = dim(Axis.HEAD_DIM)
QUERIES = dim(Axis.KV_GROUPS, Axis.GROUP_HEADS, Axis.HEAD_DIM)
KEYS = dim(Axis.KV_GROUPS, Axis.HEAD_DIM)
HEADWISE_QKV = dim(Axis.KV_GROUPS, Axis.QKV, Axis.HEAD_DIM)
"""Queries, keys and values of the first head, then those of the second, and so on."""


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor of the checkpoint, or one per layer and expert where the name holds `{layer}`, `{expert}`.

    Attributes:
        name: The tensor's name in a checkpoint.
        dims: Its dimensions, in the checkpoint's order.
        when: A boolean field of `Architecture` that must be true for the tensor to exist.
        unless: One that must be false.
        is_norm: Whether it is the gain of a norm over its one dimension.
        on_branch: Of a norm over hidden channels: whether it acts on what a layer adds to the residual
            stream, and not on the stream itself.
    """

    name: str
    dims: tuple[Dim, ...]
    when: str | None = None
    unless: str | None = None
    is_norm: bool = False
    on_branch: bool = False

    @property
    def per_layer(self) -> bool:
        """Whether the tensor exists once per decoder layer."""
        return "{layer}" in self.name

    @property
    def per_expert(self) -> bool:
        """Whether the tensor exists once per expert of a layer."""
        return "{expert}" in self.name

    @property
    def module(self) -> str:
        """The name without what follows its last dot."""
        return self.name.rpartition(".")[0]

    def exists(self, architecture: Architecture) -> bool:
        """Whether a checkpoint of this architecture holds the tensor.

        Args:
            architecture: The checkpoint's shape; says which optional tensors there are.
        """
        needed = self.when is None or getattr(architecture, self.when)
        excluded = self.unless is not None and getattr(architecture, self.unless)
        return bool(needed and not excluded)

    def shape(self, architecture: Architecture) -> tuple[int, ...]:
        """Return the tensor's shape in a checkpoint of this architecture."""
        sizes = axis_sizes(architecture)
        return tuple(int(dim.size(sizes)) for dim in self.dims)

    def elements(self, sizes: Sizes) -> Any:
        """Return how many numbers one such tensor holds, for axis sizes, scalars or arrays."""
        return prod((dim.size(sizes) for dim in self.dims), start=1)


def row(name: str, *dims: Dim, when: str | None = None, unless: str | None = None) -> TensorRow:
    """Write one line of a family table: dimensions in the checkpoint's order.

    Args:
        name: The tensor's name in a checkpoint, with `{layer}` and `{expert}` where it has them.
        *dims: In the checkpoint's order.
        when: A boolean field of `Architecture` that must be true for the tensor to exist.
        unless: One that must be false.
    """
    return TensorRow(name, dims, when, unless)


def norm(name: str, over: Dim, on_branch: bool = False) -> TensorRow:
    """Write the line of a norm's gain; what reads the norm's output stands below it, up to the next norm.

    Args:
        name: The gain's name in a checkpoint.
        over: What it normalises.
        on_branch: Whether it acts on what a layer adds to the residual stream.
    """
    return TensorRow(name, (over,), is_norm=True, on_branch=on_branch)


class TensorPlace(NamedTuple):
    """One tensor of a checkpoint; layer and expert are None where there is one tensor for all."""

    name: str
    row: TensorRow
    layer: int | None
    expert: int | None


@dataclass(frozen=True, slots=True)
class Layout:
    """The table of one model family.

    Attributes:
        model_type: The family's `model_type` in `config.json`.
        rows: Every tensor of a checkpoint.
        norm: What the norms compute: `rms` multiplies by the gain, `rms_plus_one` by 1 + gain; `layer`
            and `layer_plus_one` also subtract the mean over channels.
        scales_embeddings: Whether embeddings are multiplied by the square root of `hidden_size`.
        conv1d: Whether the matrices of the layers are stored (inputs, outputs), as Conv1D does.
        head_dim_is_derived: Whether the model takes `head_dim` to be hidden_size / num_attention_heads.
        hidden_multiple_of_heads: Whether stock transformers refuses a `hidden_size` that is no
            multiple of `num_attention_heads`.
        longrope_follows_heads: Whether stock transformers takes the number of longrope's factors from
            hidden_size // num_attention_heads, whatever `head_dim` says.
        config_keys: Where `config.json` has a field of `Architecture` under other names, all of them;
            no name where it does not hold the field.
        defaults: What transformers takes where a config leaves a field of `Architecture` out.
        ffn_ratio: Hidden sizes of an FFN whose size the config leaves out; 0 where it has to say it.
        requires: Keys of `config.json` whose other values this table does not describe.
        renamed: Parts of tensor names that differ in the loaded model: (in the checkpoint, in the model).
        aliases: Older names: (beginning of a name of this table, what checkpoints may have instead).
        ignored: Name endings of tensors that old checkpoints carry and transformers drops.
    """

    model_type: str
    rows: tuple[TensorRow, ...]
    norm: Literal["rms", "rms_plus_one", "layer", "layer_plus_one"] = "rms"
    scales_embeddings: bool = False
    conv1d: bool = False
    head_dim_is_derived: bool = False
    hidden_multiple_of_heads: bool = False
    longrope_follows_heads: bool = False
    config_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ffn_ratio: int = 0
    requires: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def tensors(self, architecture: Architecture) -> Iterator[TensorPlace]:
        """Yield every tensor of a checkpoint of this architecture.

        Args:
            architecture: The checkpoint's shape.
        """
        for table_row in self.rows:
            if table_row.exists(architecture):
                layers = range(architecture.num_hidden_layers) if table_row.per_layer else (None,)
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

    def config_names(self, field_name: str) -> tuple[str, ...]:
        """Return the keys under which `config.json` may hold a field of `Architecture`."""
        return self.config_keys.get(field_name, (field_name,))

    def axes(self) -> frozenset[Axis]:
        """Return every axis that a tensor of the family runs along."""
        return frozenset(axis for r in self.rows for each in r.dims for part in each.parts for axis in part)

    def shape_fields(self) -> tuple[str, ...]:
        """Return the sizes that pruning may change in this family, in the order of SHAPE_FIELDS."""
        names = {axis.value for axis in self.axes()} | {"num_hidden_layers"}
        if Axis.GROUP_HEADS in self.axes() or Axis.KV_GROUPS in self.axes():
            names.add("num_attention_heads")
        return tuple(name for name in SHAPE_FIELDS if name in names)

    def input_dim(self, table_row: TensorRow) -> Dim:
        """Return the dimension of a layer's matrix that its inputs run along."""
        return table_row.dims[0 if self.conv1d else -1]

    def output_dim(self, table_row: TensorRow) -> Dim:
        """Return the dimension of a layer's matrix that its outputs run along."""
        return table_row.dims[-1 if self.conv1d else 0]

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

    def reads_hidden(self, table_row: TensorRow) -> bool:
        """Whether a tensor is a matrix whose inputs are hidden channels."""
        return self.is_head(table_row) or (_is_matrix(table_row) and self.input_dim(table_row) == HIDDEN)

    def writes_hidden(self, table_row: TensorRow) -> bool:
        """Whether a tensor is an output projection: a matrix of a layer whose outputs are hidden channels."""
        return _is_matrix(table_row) and self.output_dim(table_row) == HIDDEN

    def stream_norms(self) -> tuple[TensorRow, ...]:
        """Return the gains of the norms that read the residual stream."""
        return tuple(r for r in self.rows if r.is_norm and r.dims == (HIDDEN,) and not r.on_branch)

    def norm_before(self, table_row: TensorRow) -> TensorRow:
        """Return the gain of the norm whose output a matrix reads: the last one above it in the table.

        Args:
            table_row: A matrix that reads hidden channels, of this table.
        """
        above = self.rows[: self.rows.index(table_row)]
        return next(r for r in reversed(above) if r in self.stream_norms())

    def norm_of_bias(self, table_row: TensorRow) -> TensorRow | None:
        """Return the gain of the norm that a bias belongs to; None for any other tensor."""
        if table_row.is_norm or table_row.dims != (HIDDEN,):
            return None
        return next((r for r in self.rows if r.is_norm and r.module == table_row.module), None)

    def readers(self) -> tuple[TensorRow, TensorRow]:
        """Return two matrices that read the hidden channels of a layer: one of attention, one of the FFN."""
        matrices = [r for r in self.rows if _is_matrix(r) and self.input_dim(r) == HIDDEN]
        attention = next(r for r in matrices if Axis.KV_GROUPS in self.output_dim(r))
        ffn = next(r for r in matrices if any(axis in self.output_dim(r) for axis in _FFN_AXES))
        return attention, ffn

    def writer(self, axis: Axis) -> TensorRow:
        """Return the matrix of a layer that reads an axis and writes the hidden channels.

        Args:
            axis: GROUP_HEADS for attention, `neuron_axis` for the FFN.
        """
        (found,) = [r for r in self.rows if self.writes_hidden(r) and axis in self.input_dim(r)]
        return found

    @property
    def neuron_axis(self) -> Axis:
        """The axis of FFN neurons, or of the neurons of each expert."""
        return Axis.EXPERT_NEURONS if Axis.EXPERT_NEURONS in self.axes() else Axis.NEURONS

    @property
    def has_experts(self) -> bool:
        """Whether the FFN consists of experts."""
        return Axis.EXPERTS in self.axes()

    @property
    def layer_module(self) -> str:
        """Module name, with `{layer}`, of one decoder layer."""
        name = next(r.name for r in self.rows if r.per_layer)
        return name[: name.index("{layer}") + len("{layer}")]

    def module_of(self, table_row: TensorRow) -> str:
        """Return the name, with `{layer}`, of the module of the loaded model that holds a tensor.

        Args:
            table_row: Of this table; an expert's module keeps its `{expert}`.
        """
        name = table_row.module
        for stored, loaded in self.renamed:
            name = name.replace(stored, loaded)
        return name


_FFN_AXES = (Axis.NEURONS, Axis.EXPERT_NEURONS, Axis.EXPERTS)
_NUM_PROJECTIONS = 3


def _is_matrix(table_row: TensorRow) -> bool:
    return table_row.per_layer and len(table_row.dims) == 2


def axis_sizes(architecture: Architecture) -> dict[Axis, int]:
    """Return the size of every axis.

    Args:
        architecture: A shape; of QKV the size is the number of projections.
    """
    return {axis: _NUM_PROJECTIONS if axis is Axis.QKV else getattr(architecture, axis.value) for axis in Axis}
