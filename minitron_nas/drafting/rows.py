"""From what probes store to the rows of a table."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minitron_nas.architecture.layout import (
    HEADWISE_QKV,
    HIDDEN,
    KEYS,
    QUERIES,
    Axis,
    Dim,
    TensorRow,
    norm,
    row,
)
from minitron_nas.architecture.spec import Architecture
from minitron_nas.drafting.dims import FUSED_QKV, GROUPS, HEADS, explanations
from minitron_nas.drafting.probe import Probe, row_name
from minitron_nas.drafting.roles import Roles

_KEYS_AND_VALUES = re.compile(r"(^|[._])(k|v|key|value|keys|values|kv)(_|$|\d)", re.IGNORECASE)
_FFN_AXES = (Axis.NEURONS, Axis.EXPERT_NEURONS)


@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor that no row of the grammar explains.

    Attributes:
        name: As a row would call it.
        told: What was seen of it.
    """

    name: str
    told: str


@dataclass(frozen=True, slots=True)
class Drafted:
    """The rows of a draft.

    Attributes:
        rows: In the order in which the model computes.
        seen: What no row explains.
        doubts: Rows by name whose entries may lie otherwise; the other dimension that is as long.
    """

    rows: tuple[TensorRow, ...]
    seen: tuple[Seen, ...]
    doubts: Mapping[str, tuple[Dim, Dim]]


def draft_rows(probes: Mapping[str, Probe], shapes: Mapping[str, Architecture], roles: Roles) -> Drafted:
    """Explain every tensor that the probes store.

    Args:
        probes: By name; the first is the one that the others are changes of.
        shapes: Of the same.
        roles: Of the first.
    """
    base = next(iter(probes.values()))
    stored = {name: _by_row(probe) for name, probe in probes.items()}
    found: dict[str, list[list[Dim]]] = {}
    seen: list[Seen] = []
    for name, layers in stored[next(iter(probes))].items():
        present = [key for key in probes if name in stored[key]]
        shapes_seen = [next(iter(stored[key][name].values())) for key in present]
        if told := _why_no_row(name, layers, base, shapes_seen):
            seen.append(Seen(name, told))
            continue
        dims = [
            explanations([shape[number] for shape in shapes_seen], [shapes[key] for key in present])
            for number in range(len(shapes_seen[0]))
        ]
        if all(dims):
            found[name] = dims
        else:
            seen.append(Seen(name, _unexplained(dims, present, shapes_seen)))
    doubts: dict[str, tuple[Dim, Dim]] = {}
    chosen: dict[str, tuple[Dim, ...]] = {}
    for name in sorted(found, key=lambda name: name in roles.norms or len(found[name]) == 1):  # matrices first
        chosen[name] = _chosen(name, found, chosen, roles)
        if FUSED_QKV in chosen[name] and any({FUSED_QKV, HEADWISE_QKV} <= set(dims) for dims in found[name]):
            doubts[name] = (FUSED_QKV, HEADWISE_QKV)
    rows = [_row(name, chosen[name], roles) for name in sorted(found, key=lambda name: _order(name, chosen, roles))]
    return Drafted(tuple(_norms_before_readers(rows, roles)), tuple(seen), doubts)


def ffn_rows(rows: Sequence[TensorRow]) -> set[str]:
    """Return the modules that belong to the FFN: their matrices run along its neurons."""
    return {each.module for each in rows if any(axis in each_dim for each_dim in each.dims for axis in _FFN_AXES)}


def attention_rows(rows: Sequence[TensorRow]) -> set[str]:
    """Return the modules that belong to attention: their matrices run along its heads."""
    return {each.module for each in rows if any(Axis.KV_GROUPS in each_dim for each_dim in each.dims)}


def _by_row(probe: Probe) -> dict[str, dict[int | None, tuple[int, ...]]]:
    found: dict[str, dict[int | None, tuple[int, ...]]] = {}
    for stored, shape in probe.stored.items():
        name, layer = row_name(stored)
        found.setdefault(name, {})[layer] = shape
    return found


def _why_no_row(
    name: str, layers: Mapping[int | None, tuple[int, ...]], base: Probe, shapes: Sequence[tuple[int, ...]]
) -> str | None:
    if name.format(layer=0, expert=0) in base.buffers:
        return f"of shape {shapes[0]}: a buffer, which is in the file and no parameter"
    if "{layer}" in name and set(layers) != set(range(base.num_layers)):
        return f"only in layers {', '.join(map(str, sorted(n for n in layers if n is not None)))} of {base.num_layers}"
    if len(set(layers.values())) > 1:
        told = ", ".join(f"{shape} in layer {layer}" for layer, shape in layers.items())
        return f"of another shape from layer to layer: {told}"
    if len(shapes[0]) > 2:
        return f"of shape {shapes[0]}: a draft has rows of one and of two dimensions"
    return None


def _unexplained(dims: Sequence[list[Dim]], probes: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> str:
    told = []
    for number, found in enumerate(dims):
        if not found:
            first = shapes[0][number]
            moves = [
                f"{shape[number]} with another {probe}"
                for probe, shape in zip(probes, shapes, strict=True)
                if shape[number] != first
            ]
            told.append(f"dimension {number} is {first}, {', '.join(moves) if moves else 'in every probe'}")
    return f"of shape {shapes[0]}: {'; '.join(told)}"


def _chosen(
    name: str, found: Mapping[str, list[list[Dim]]], chosen: Mapping[str, tuple[Dim, ...]], roles: Roles
) -> tuple[Dim, ...]:
    dims = found[name]
    if len(dims) == 2 and "{layer}" in name and "{expert}" not in name:
        inputs, outputs = (0, 1) if roles.conv1d(name) else (1, 0)
        if roles.reads_stream(name):
            dims = _with(dims, {inputs: _only(dims[inputs], HIDDEN), outputs: _without(dims[outputs], HIDDEN)})
        else:
            dims = _with(dims, {outputs: _only(dims[outputs], HIDDEN), inputs: _without(dims[inputs], HIDDEN)})
    if len(dims) == 1:
        other = roles.said_by(name) if name in roles.norms else f"{name.rpartition('.')[0]}.weight"
        if other is not None and other != name and other in chosen:
            length = chosen[other][-1 if roles.conv1d(other) else 0]
            if length in dims[0]:
                return (length,)
    return tuple(_named(name, each) for each in dims)


def _with(dims: Sequence[list[Dim]], changes: Mapping[int, list[Dim]]) -> list[list[Dim]]:
    return [changes.get(number, each) for number, each in enumerate(dims)]


def _only(dims: list[Dim], wanted: Dim) -> list[Dim]:
    return [wanted] if wanted in dims else dims


def _without(dims: list[Dim], unwanted: Dim) -> list[Dim]:
    return [each for each in dims if each != unwanted] or dims


def _named(name: str, dims: list[Dim]) -> Dim:
    """Choose between dimensions of one length: hidden channels, or by its name keys or queries."""
    if HIDDEN in dims:
        return HIDDEN
    of_keys = _KEYS_AND_VALUES.search(name.rpartition(".")[0].rpartition(".")[2]) is not None
    for many, few in ((QUERIES, KEYS), (HEADS, GROUPS)):
        if many in dims and few in dims:
            return few if of_keys else many
    return dims[0]


def _row(name: str, dims: tuple[Dim, ...], roles: Roles) -> TensorRow:
    found = roles.norms.get(name)
    if found is not None:
        return norm(name, dims[0], on_branch=found.on_branch and dims[0] == HIDDEN)
    return row(name, *dims)


def _order(name: str, chosen: Mapping[str, tuple[Dim, ...]], roles: Roles) -> tuple[int, int, int, str]:
    order, later = roles.order(name)
    writes = int("{expert}" in name and chosen[name][0] == HIDDEN)
    return order, writes, later, name


def _norms_before_readers(rows: list[TensorRow], roles: Roles) -> list[TensorRow]:
    """Put a norm, with its bias, right above the first matrix that reads its output if another norm stands between."""
    ordered = list(rows)
    for name in roles.norms:
        readers = [each for each in ordered if len(each.dims) == 2 and roles.norm_of(each.name) == name]
        own = [each for each in ordered if each.module == name.rpartition(".")[0]]
        if readers and own and _other_norm_between(ordered, own[0], readers[0]):
            rest = [each for each in ordered if each not in own]
            place = rest.index(readers[0])
            ordered = rest[:place] + own + rest[place:]
    return ordered


def _other_norm_between(rows: Sequence[TensorRow], one: TensorRow, reader: TensorRow) -> bool:
    between = rows[rows.index(one) + 1 : rows.index(reader)]
    return any(each.is_norm and each.dims == (HIDDEN,) and not each.on_branch for each in between)
