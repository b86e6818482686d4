"""`draft_family`: the first version of a table for a model type, from tiny random models that transformers makes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoConfig

from minitron_nas.architecture.layout import HIDDEN, NEURONS, Axis, Dim, Layout, TensorRow
from minitron_nas.architecture.spec import Architecture
from minitron_nas.drafting.fields import Fields, variants
from minitron_nas.drafting.probe import Probe
from minitron_nas.drafting.roles import Roles
from minitron_nas.drafting.rows import Drafted, Seen, draft_rows
from minitron_nas.drafting.source import to_python
from minitron_nas.drafting.switches import Switches, other_values, switched
from minitron_nas.errors import CheckpointError
from minitron_nas.models.config_alone import config_alone
from minitron_nas.testing.conformance import check_units
from minitron_nas.testing.examination import filled, quiet
from minitron_nas.testing.shrink import shrunk
from minitron_nas.testing.subject import Subject

_TEXT_PARTS = ("text_config", "llm_config", "language_config")
_HEADS, _GROUPS = 6, 2
_NEURONS = 104
_EXPERTS, _EXPERTS_PER_TOKEN, _EXPERT_NEURONS = 4, 2, 40
_ODD = 4
"""More hidden channels than a multiple of the heads."""
_FACTORS, _SHARE = "short_factor", "partial_rotary_factor"
_DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 1e4}


@dataclass(frozen=True, slots=True)
class Draft:
    """A first table.

    Attributes:
        layout: The table; of what it does not explain there is no row.
        seen: Tensors that it does not explain.
        remarks: What else it does not say.
    """

    layout: Layout
    seen: tuple[Seen, ...]
    remarks: tuple[str, ...]

    def to_python(self) -> str:
        """Return the source of a module that holds the table; what it does not explain are comments."""
        return to_python(self.layout, self.seen, self.remarks)


def draft_family(source: str) -> Draft:
    """Draft the table of a model type, known or not.

    Tiny random models are made of the config, each with one size or one switch changed. Which tensors have which
    length in which of them says along which axes they run; what their modules read and put out says which matrices read
    the residual stream, which norms there are, and in what order.

    Args:
        source: A folder, config file or hub name, of which the config is read and nothing else; or a model type of
            transformers. Of a model of images and text its text part is drafted.

    Raises:
        TeacherNotFoundError: If it is none of these.
        CheckpointError: If transformers makes no tiny model of the config, or it has no key for one of its sizes.
    """
    name, content = config_alone(source)
    with quiet():
        whole = filled(name, _text_part(content))
        return _Drafting(name, whole).draft()


def _text_part(content: dict[str, Any]) -> dict[str, Any]:
    return next((content[key] for key in _TEXT_PARTS if isinstance(content.get(key), dict)), content)


class _Drafting:
    """The probes of one type, and what is read off them."""

    def __init__(self, name: object, whole: Mapping[str, Any]) -> None:
        self._name, self._whole = name, whole
        self._fields = Fields(whole)
        self._remarks: list[str] = []
        self._base = self._first()
        self._shape = self._fields.architecture(self._base.content, self._ffn_ratio())
        self._probes = {"nothing": self._base}
        self._heads_fill_hidden = self._probe_sizes()
        self._roles = Roles(self._base)

    def draft(self) -> Draft:
        """Read the table off the probes."""
        drafted = self._rows_of(self._probes)
        flipped = dict(self._flipped())
        found = switched(drafted.rows, self._base, flipped, self._rows_alone)
        self._remarks += found.remarks
        layout = self._layout(found)
        layout = self._settled(layout, drafted.doubts)
        if not any(NEURONS in each.dims for each in layout.rows) and Axis.EXPERT_NEURONS not in layout.axes():
            self._remarks.append("no tensor runs along neurons of an FFN with a size of its own in the config")
        if not layout.stream_norms():
            self._remarks.append("no norm with a gain reads the residual stream; the grammar needs one for each reader")
        return Draft(layout, drafted.seen, tuple(self._remarks))

    def _first(self) -> Probe:
        """Make the model that all others are changes of: six heads, in two groups where there are groups."""
        small = {key: _plain_rope(value) for key, value in shrunk(self._whole, self._fields.keys).items()}
        shape = self._fields.architecture(small)
        width = shape.head_dim if self._fields.keys("head_dim") else shape.hidden_size // shape.num_attention_heads
        sizes = {
            "hidden_size": _HEADS * width,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _GROUPS,
            "head_dim": width,
            "intermediate_size": _NEURONS,
            "num_experts": _EXPERTS,
            "num_experts_per_tok": _EXPERTS_PER_TOKEN,
            "moe_intermediate_size": _EXPERT_NEURONS,
        }
        if not self._fields.keys("head_dim"):
            del sizes["head_dim"]
        untied = {**small, "tie_word_embeddings": False}
        groups = dict.fromkeys((_GROUPS, _HEADS)) if self._fields.keys("num_key_value_heads") else {_HEADS: None}
        failure: Exception | None = None
        for count in groups:
            try:
                return Probe.of(self._fields.with_sizes(untied, {**sizes, "num_key_value_heads": count}))
            except Exception as error:  # noqa: BLE001 - whatever a config or model of transformers raises
                failure = error
        raise CheckpointError(
            f"transformers makes no tiny model of {self._name}, or cannot run it: {type(failure).__name__}: "
            f"{' '.join(str(failure).split())}"
        ) from failure

    def _tried(self, content: Mapping[str, Any]) -> Probe | None:
        try:
            return Probe.of(content)
        except Exception:  # noqa: BLE001 - that a model cannot be is an answer, too
            return None

    def _probe_sizes(self) -> bool:
        """Make the models with other sizes; return whether heads have to fill the hidden size."""
        derived = False
        for name, sizes in variants(self._shape, self._fields):
            if name == "hidden_size" and derived:
                continue
            known = {field: size for field, size in sizes.items() if field == "head_dim" or self._fields.keys(field)}
            if not self._fields.keys("head_dim") and name != "head_dim":
                known = _explicit(known, self._shape, derived)
            if not known:
                continue
            probe = self._tried(self._fields.with_sizes(self._base.content, known))
            if name == "head_dim":
                derived = probe is None or probe.stored == self._base.stored
                if derived:
                    continue
            if probe is not None:
                self._probes[name] = probe
            elif name not in {"groups", "positions"}:
                self._remarks.append(f"transformers makes no tiny model with another {name} ({known})")
        return derived

    def _rows_of(self, probes: Mapping[str, Probe]) -> Drafted:
        ratio = self._ffn_ratio()
        shapes = {name: self._fields.architecture(probe.content, ratio) for name, probe in probes.items()}
        return draft_rows(probes, shapes, Roles(next(iter(probes.values()))))

    def _rows_alone(self, probe: Probe) -> tuple[TensorRow, ...]:
        """Return the rows of one model, by its sizes alone."""
        return self._rows_of({"nothing": probe}).rows

    def _flipped(self) -> Iterator[tuple[str, Probe]]:
        """Yield a probe for each key; biases that transformers refuses to have one by one are tried together."""
        refused = {}
        for key, value in other_values(self._base.content, self._fields.all_keys()):
            if (probe := self._tried({**self._base.content, key: value})) is not None:
                yield key, probe
            elif isinstance(value, bool) and "bias" in key:
                refused[key] = value
        if len(refused) > 1 and (together := self._tried({**self._base.content, **refused})) is not None:
            yield from dict.fromkeys(refused, together).items()

    def _ffn_ratio(self) -> int:
        """How many hidden sizes an FFN has whose size the config leaves out; 0 where it says it."""
        keys = self._fields.keys("intermediate_size")
        if not keys or self._whole.get(keys[0]) is not None:
            return 0
        content = {**self._base.content, keys[0]: None}
        probe = self._tried(content)
        if probe is None:
            return 0
        hidden = self._fields.value(content, "hidden_size") or 1
        changed = [
            size // hidden
            for name, shape in probe.stored.items()
            for size, other in zip(shape, self._base.stored.get(name, shape), strict=True)
            if size != other
        ]
        return changed[0] if changed else 0

    def _layout(self, found: Switches) -> Layout:
        rows = found.rows
        norms = {name: each for name, each in self._roles.norms.items() if _over_hidden(rows, name)}
        kinds = sorted({each.kind for each in norms.values()})
        if len(kinds) > 1:
            told = "; ".join(f"{name}: {each.kind}" for name, each in norms.items())
            self._remarks.append(f"the norms are not of one kind: {told}")
        matrices = [each for each in rows if "{layer}" in each.name and len(each.dims) == 2]
        turned = [self._roles.conv1d(each.name) for each in matrices]
        if any(turned) and not all(turned):
            self._remarks.append("some matrices are stored (inputs, outputs) and some (outputs, inputs)")
        layout = Layout(
            model_type=str(self._whole["model_type"]),
            rows=rows,
            norm=kinds[0] if kinds else "rms",
            scales_embeddings=self._scales_embeddings(),
            conv1d=bool(turned) and all(turned),
            head_dim_is_derived=self._heads_fill_hidden,
            hidden_multiple_of_heads=not self._heads_fill_hidden and self._refuses_odd_sizes(),
            ffn_ratio=self._ffn_ratio(),
            requires=dict(found.requires),
            renamed=self._roles.renamed,
            layers_return_tuples=self._roles.layers_return_tuples,
        )
        keys = self._config_keys(layout) | dict(found.config_keys)
        layout = replace(layout, config_keys=keys)
        return replace(layout, defaults=self._defaults(layout))

    def _scales_embeddings(self) -> bool:
        sizes = {name: self._fields.value(probe.content, "hidden_size") or 1 for name, probe in self._probes.items()}
        wide = [name for name in self._probes if sizes[name] != sizes["nothing"]]
        return bool(wide) and all(
            Roles(self._probes[name]).scales_embeddings(sizes[name]) for name in ("nothing", wide[0])
        )

    def _refuses_odd_sizes(self) -> bool:
        sizes = {"hidden_size": self._shape.hidden_size + _ODD, "head_dim": self._shape.head_dim}
        return self._tried(self._fields.with_sizes(self._base.content, sizes)) is None

    def _config_keys(self, layout: Layout) -> dict[str, tuple[str, ...]]:
        found = {}
        for field in layout.shape_fields():
            if (keys := self._fields.keys(field)) != (field,):
                found[field] = keys
        for field in ("vocab_size", *(("max_position_embeddings",) if Axis.POSITIONS in layout.axes() else ())):
            if (keys := self._fields.keys(field)) != (field,):
                found[field] = keys
        if layout.has_experts and (keys := self._fields.keys("num_experts_per_tok")) != ("num_experts_per_tok",):
            found["num_experts_per_tok"] = keys
        if not self._fields.keys("num_key_value_heads"):
            found["num_key_value_heads"] = ()
        keys = self._fields.keys("head_dim")
        if (self._heads_fill_hidden and not keys) or keys not in {(), ("head_dim",)}:
            found["head_dim"] = keys
        return found

    def _defaults(self, layout: Layout) -> dict[str, Any]:
        """Return what the config class fills in where our own reading of an incomplete config would be another."""
        stock = AutoConfig.for_model(layout.model_type).to_dict()
        found: dict[str, Any] = {}
        if self._fields.keys("head_dim"):
            hidden = self._fields.keys("hidden_size")[0]
            wider = AutoConfig.for_model(layout.model_type, **{hidden: 2 * stock[hidden]}).to_dict()
            width = self._fields.value(stock, "head_dim")
            if width is not None and width == self._fields.value(wider, "head_dim"):
                found["head_dim"] = width
        for field, axis in (
            ("max_position_embeddings", Axis.POSITIONS),
            ("num_experts", Axis.EXPERTS),
            ("num_experts_per_tok", Axis.EXPERTS),
            ("moe_intermediate_size", Axis.EXPERT_NEURONS),
        ):
            if axis in layout.axes() and (value := self._fields.value(stock, field)) is not None:
                found[field] = value
        switches = {each.when for each in layout.rows} | {each.unless for each in layout.rows}
        for field in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
            if field in switches and any(stock.get(key) is True for key in layout.config_names(field)):
                found[field] = True
        return found

    def _settled(self, layout: Layout, doubts: Mapping[str, tuple[Dim, Dim]]) -> Layout:
        """Try how the entries of fused projections lie, and say where no way holds."""
        if not doubts:
            return layout
        config = AutoConfig.for_model(**self._base.content)
        told = ""
        for number in (0, 1):
            tried = replace(layout, rows=tuple(_with_dims(each, doubts, number) for each in layout.rows))
            try:
                with TemporaryDirectory() as folder:
                    check_units(Subject.make(tried, config, Path(folder)))
            except Exception as error:  # noqa: BLE001 - a table that is wrong or incomplete fails in any way
                told = told or " ".join(str(error).split())
            else:
                return tried
        self._remarks.append(f"the entries of {', '.join(doubts)} lie in a way that the grammar does not know: {told}")
        return layout


def _with_dims(row: TensorRow, doubts: Mapping[str, tuple[Dim, Dim]], number: int) -> TensorRow:
    if row.name not in doubts:
        return row
    others = doubts[row.name]
    return replace(row, dims=tuple(others[number] if each in others else each for each in row.dims))


def _explicit(sizes: dict[str, int], base: Architecture, derived: bool) -> dict[str, int]:
    """Say the head size wherever the hidden size changes without it, if the family listens."""
    if derived:
        return {field: size for field, size in sizes.items() if field != "head_dim"}
    return {"head_dim": base.head_dim, **sizes} if "hidden_size" in sizes else sizes


def _over_hidden(rows: tuple[TensorRow, ...], name: str) -> bool:
    return any(each.name == name and each.dims == (HIDDEN,) for each in rows)


def _plain_rope(value: Any) -> Any:
    """Replace rotary positions that list a factor for each channel, which probes have other numbers of."""
    if not isinstance(value, dict):
        return value
    if _FACTORS in value:
        return {**_DEFAULT_ROPE, **{key: value[key] for key in (_SHARE,) if key in value}}
    return {key: _plain_rope(inner) for key, inner in value.items()}
