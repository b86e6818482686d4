"""Which keys of a config bring tensors or take them away."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minitron_nas.architecture.layout import TensorRow
from minitron_nas.drafting.probe import Probe, row_name
from minitron_nas.drafting.rows import attention_rows, ffn_rows

_TIED = "tie_word_embeddings"
_DENSE = "dense_layers"
_NO_SWITCHES = frozenset({
    "use_cache", "output_hidden_states", "output_attentions", "return_dict", "is_decoder", "is_encoder_decoder",
    "add_cross_attention", "chunk_size_feed_forward", "cross_attention_hidden_size", "tf_legacy_loss", "use_bfloat16",
})  # fmt: skip
_NO_SIZES = (
    "_token_id",
    "rope",
    "window",
    "position",
    "layers",
    "seed",
    "pretraining",
    "vocab",
    "length",
    "num_labels",
)


@dataclass(frozen=True, slots=True)
class Switches:
    """What keys of a config do to the rows.

    Attributes:
        rows: With `when` and `unless`, and with those rows that another value brings.
        config_keys: Of the fields that rows name, by field; only where the key is called otherwise.
        requires: Keys whose other values bring tensors that no row names.
        remarks: Which keys tell kinds of layers, in words of the grammar.
    """

    rows: tuple[TensorRow, ...]
    config_keys: Mapping[str, tuple[str, ...]]
    requires: Mapping[str, tuple[Any, ...]]
    remarks: tuple[str, ...]


def other_values(content: Mapping[str, Any], sizes: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield keys of a config that are no size, with another value to try for each.

    Args:
        content: The config.
        sizes: Keys that are known as sizes.
    """
    for key, value in content.items():
        if key in sizes or key in _NO_SWITCHES or (any(part in key for part in _NO_SIZES) and _DENSE not in key):
            continue
        if isinstance(value, bool):
            yield key, not value
        elif isinstance(value, int):
            yield key, 2 * value or 1


def switched(
    rows: Sequence[TensorRow], base: Probe, flipped: Mapping[str, Probe], draft: Callable[[Probe], Sequence[TensorRow]]
) -> Switches:
    """Read what each key does from a probe in which it alone has another value.

    Args:
        rows: Of the base.
        base: The probe that the others are changes of.
        flipped: Probes by key.
        draft: Gives the rows of another probe, to take over those that the base lacks.
    """
    own = _names(base)
    result = {each.name: each for each in rows}
    keys: dict[str, set[str]] = {}
    requires: dict[str, tuple[Any, ...]] = {}
    remarks: list[str] = []
    for key, probe in flipped.items():
        names = _names(probe)
        gone, new = own - names, names - own
        if key == _TIED:
            for name in gone & result.keys():
                result[name] = replace(result[name], unless=_TIED)
            continue
        if not gone and not new and _same_shapes(base, probe):
            continue
        if told := _as_first_layers(key, base, probe):
            remarks.append(told)
            continue
        fields = _fields(gone, rows) if gone else _fields(new, draft(probe))
        on = base.content[key] is bool(gone)
        taken = {field for field in fields or () if field in keys and key not in keys[field]}
        if not on or fields is None or (gone and new) or taken:
            requires[key] = (base.content[key],)
            if new and not gone and (told := _as_all_or_none(key, base, probe, new)):
                remarks.append(told)
            continue
        if new:
            result = {each.name: each for each in _merged(list(result.values()), draft(probe), new)}
        for name, field in _by_field(gone or new, list(result.values())).items():
            result[name] = replace(result[name], when=field)
            keys.setdefault(field, set()).add(key)
    named = {field: tuple(sorted(found)) for field, found in keys.items() if found != {field}}
    return Switches(tuple(result.values()), named, requires, tuple(remarks))


def _as_first_layers(key: str, base: Probe, probe: Probe) -> str | None:
    """Say what the first layers have, if a key is their number and they are of another kind than all others."""
    pairs = [(_layers_by_name(each), each.content[key], each.num_layers) for each in (base, probe)]
    if any(isinstance(count, bool) or not isinstance(count, int) for _, count, _ in pairs):
        return None
    names = {name for layers, _, _ in pairs for name in layers}
    moved = sorted(name for name in names if pairs[0][0].get(name, set()) != pairs[1][0].get(name, set()))
    of_first = {
        name
        for name in moved
        if all(layers.get(name, set()) == {*range(min(count, number))} for layers, count, number in pairs)
    }
    of_others = {
        name
        for name in moved
        if all(layers.get(name, set()) == {*range(min(count, number), number)} for layers, count, number in pairs)
    }
    if not moved or of_first | of_others != {*moved}:
        return None
    return (
        f'{key} is the number of the first layers, which are of a kind of their own: kinds=FirstLayers("{key}", '
        f'first="first", others="others"), with only("first", ...) around {_told(of_first)}, and only("others", ...) '
        f"around {_told(of_others)}"
    )


def _as_all_or_none(key: str, base: Probe, probe: Probe, new: set[str]) -> str | None:
    """Say what all layers have, or none, if a key is a number that is 0 where none has it."""
    layers = _layers_by_name(probe)
    value = base.content[key]
    if isinstance(value, bool) or value != 0 or any(layers[name] != {*range(probe.num_layers)} for name in new):
        return None
    return (
        f'where {key} is not 0, all layers have {_told(new)}: kinds=AllOrNone("{key}", having="more"), with '
        f'only("more", ...) around these, describes both, and nothing is required'
    )


def _layers_by_name(probe: Probe) -> dict[str, set[int | None]]:
    found: dict[str, set[int | None]] = {}
    for name, layer in map(row_name, probe.stored):
        found.setdefault(name, set()).add(layer)
    return found


def _told(names: set[str]) -> str:
    return ", ".join(sorted(name.partition("{layer}.")[2] for name in names)) or "nothing"


def _names(probe: Probe) -> set[str]:
    return {row_name(stored)[0] for stored in probe.stored}


def _same_shapes(base: Probe, probe: Probe) -> bool:
    return all(probe.stored.get(name) == shape for name, shape in base.stored.items())


def _by_field(names: set[str], rows: Sequence[TensorRow]) -> dict[str, str]:
    """Return the field of `Architecture` that each bias goes by: attention's or the FFN's."""
    attention, ffn = attention_rows(rows), ffn_rows(rows)
    modules = {name: name.rpartition(".")[0] for name in names}
    return {
        name: "attention_bias" if module in attention else "mlp_bias"
        for name, module in modules.items()
        if name.endswith(".bias") and module in attention | ffn
    }


def _fields(names: set[str], rows: Sequence[TensorRow]) -> set[str] | None:
    """Return the fields that biases go by, None if some tensor is none of a projection."""
    found = _by_field(names, rows)
    return set(found.values()) if found.keys() == names else None


def _merged(rows: list[TensorRow], other: Sequence[TensorRow], new: set[str]) -> Iterator[TensorRow]:
    """Yield rows with the new ones where the other model has them: each behind the row above it."""
    above: dict[str, list[TensorRow]] = {}
    last = ""
    for each in other:
        if each.name in new:
            above.setdefault(last, []).append(each)
        else:
            last = each.name
    yield from above.get("", ())
    for each in rows:
        yield each
        yield from above.get(each.name, ())
