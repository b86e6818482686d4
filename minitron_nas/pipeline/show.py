"""Anything that this package reads or writes, at a glance: a model, a run, scores, a space, a latency model."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from minitron_nas.architecture.costs import costs_of
from minitron_nas.architecture.layout import Axis, Layout, TensorRow
from minitron_nas.architecture.spec import SHAPE_FIELDS
from minitron_nas.errors import PlanError, TeacherNotFoundError
from minitron_nas.evaluation.latency import LatencyModel
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.outline import Outline
from minitron_nas.reporting.members import list_members
from minitron_nas.reporting.run_record import read_run
from minitron_nas.resources import resource_names
from minitron_nas.space.axes import AxisValues, SearchSpace, load_space
from minitron_nas.storage.copies import local
from minitron_nas.storage.ledger import Ledger
from minitron_nas.storage.lineage import LINEAGE, Lineage, read_lineage
from minitron_nas.storage.plain_yaml import load_yaml
from minitron_nas.storage.remote import as_uri
from minitron_nas.storage.run_folder import RunFolder, holds_run

_CONTEXT_TOKENS = 4096
_MOST_LISTED = 8
_SIZES = (
    *SHAPE_FIELDS, "num_experts_per_tok", "num_shared_experts", "num_expert_groups", "mamba_num_groups", "head_dim",
    "vocab_size"
)  # fmt: skip
_OF_ATTENTION = {Axis.KV_GROUPS, Axis.GROUP_HEADS, Axis.HEAD_DIM}
_OF_MIXERS = {Axis.CONV_CHANNELS, Axis.MAMBA_GROUPS, Axis.MAMBA_HEAD_DIM}
_PARTS = {
    "embeddings": {Axis.VOCAB, Axis.POSITIONS},
    "attention": _OF_ATTENTION,
    "mixers": _OF_MIXERS,
    "shared experts": {Axis.SHARED_NEURONS},
    "experts": {Axis.EXPERT_NEURONS},
    "feed-forward": {Axis.NEURONS, Axis.WIDE_NEURONS},
    "router": {Axis.EXPERTS},
}
"""What a tensor is part of, by the first of these that has one of its axes."""
_PER_LAYER = "hidden_size_per_layer_input"
_SCORES = "scores.safetensors"

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """What there is to say of something.

    Attributes:
        kind: model, run, scores, space or latency model.
        name: What was asked for.
        facts: By name; plain values.
        tables: Rows of equal keys, by title.
    """

    kind: str
    name: str
    facts: Facts
    tables: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {"kind": self.kind, "name": self.name, **self.facts, **self.tables}

    def lines(self) -> Iterator[str]:
        """Yield it as people read it."""
        yield f"{self.kind} {self.name}"
        width = max((len(key) for key in self.facts), default=0)
        for key, value in self.facts.items():
            yield f"  {_spaced(key):<{width}}  {_told(value)}"
        for title, rows in self.tables.items():
            yield ""
            yield from _table(title, rows)


def show(what: str) -> Shown:
    """Say what something is, without running it.

    Args:
        what: A run (folder or URI), a model (folder, URI, hub name, GGUF file, wheel), a folder of scores, a space
            (preset or YAML file) or a file of `minitron-nas latency`.

    Raises:
        MinitronNasError: If it is none of these; says what it was taken for.
    """
    path = local(what)
    if holds_run(path):
        return _run(path, what)
    if (path / _SCORES).is_file():
        return _scores(path)
    if path.suffix in (".yaml", ".yml") and _is_plan(path):
        raise PlanError(f"{what} is a plan; `minitron-nas plan --plan {what}` says what it would do")
    if path.suffix in (".yaml", ".yml") or (not path.exists() and what in resource_names("search_spaces", ".yaml")):
        return _space(what, load_space(what))
    if path.suffix == ".json" and (path.parent / "config.json").is_file():
        return _model(str(path.parent))
    if path.is_file() and path.suffix == ".json":
        return _latency(what, LatencyModel.load(path))
    return _model(what)


def _is_plan(file: Path) -> bool:
    try:
        content = load_yaml(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False
    return isinstance(content, dict) and "teacher" in content and "sizes" in content


def _model(what: str) -> Shown:
    from minitron_nas.models.source import outline_teacher  # deferred: imports torch

    with TemporaryDirectory() as work:
        try:
            outline = outline_teacher(what, Path(work), reads_text=False)
        except TeacherNotFoundError as error:
            raise TeacherNotFoundError(f"{what} is no run, scores, space or latency model either: {error}") from None
    beside = outline.tower.num_bytes if outline.tower is not None else 0
    stored = {"gigabytes_of_weights": round((outline.weights_bytes + beside) / 1e9, 3)}
    folder = local(what)
    lineage = _lineage(read_lineage(folder)) if (folder / LINEAGE).is_file() else {}
    return Shown("model", what, {**_shape(outline), **stored, **lineage}, {"parameters by part": _parts(outline)})


def _shape(outline: Outline) -> dict[str, Any]:
    """Return what is known of a model from its shape alone."""
    shape = outline.architecture
    whole = {name: np.array([getattr(shape, name)]) for name in outline.layout.column_fields()}
    costs = {name: int(column[0]) for name, column in costs_of(outline.layout, shape, whole, _CONTEXT_TOKENS).items()}
    state = costs["state_bytes_per_sequence"]
    fixed = {name: size for name, size in shape.fixed_sizes.items() if size or isinstance(size, bool)}
    wide = shape.num_wide_neurons if outline.layout.runs_along(Axis.WIDE_NEURONS, shape) else 0
    kinds = {
        "neurons_of_layers_that_share_keys": wide,
        "layer_kinds": dict(Counter(shape.layer_kinds)),
        "fixed_sizes": fixed,
    }
    return {
        "family": shape.model_type,
        **_counted(outline),
        "active_parameters": costs["num_active_parameters"],
        **{name: size for name in _SIZES if (size := getattr(shape, name))},
        **{name: found for name, found in kinds.items() if found},
        "tied_embeddings": shape.tie_word_embeddings,
        "bytes_of_kv_cache_per_token": costs["kv_cache_bytes_per_token"],
        **({"bytes_of_states_per_sequence": state} if state else {}),
        f"forward_flops_per_token_at_{_CONTEXT_TOKENS:,}": costs["forward_flops_per_token"],
    }


def _counted(outline: Outline) -> dict[str, Any]:
    """Return its parameters; of a wrapper its class, and the parameters of its text part and, if known, of all."""
    if outline.tower is None:
        return {"parameters": outline.num_parameters}
    beside = outline.tower.num_parameters
    whole = {"parameters_of_the_whole": outline.num_parameters + beside} if beside else {}
    loaded_by = {"loads_through": "AutoModelForImageTextToText"}
    return {**loaded_by, "parameters_of_the_text_part": outline.num_parameters, **whole}


def _parts(outline: Outline) -> list[dict[str, Any]]:
    counts = Counter[str]()
    for place in outline.layout.tensors(outline.architecture):
        if place.row.is_buffer:
            continue
        counts[_part(place.row, outline.layout)] += int(np.prod(place.row.shape(outline.architecture)))
    if outline.tower is not None and outline.tower.num_parameters:
        counts["what looks at pictures"] = outline.tower.num_parameters
    total = sum(counts.values())
    return [{"part": part, "parameters": count, "share": count / total} for part, count in counts.most_common()]


def _part(row: TensorRow, layout: Layout) -> str:
    axes = _axes(row)
    if row.per_expert:
        return "experts"
    if any(_PER_LAYER in dim.fixed_keys for dim in row.dims):
        return "embeddings of each layer"
    if any(dim.fixed_keys for dim in row.dims) and axes.isdisjoint(_OF_ATTENTION | _OF_MIXERS):
        return _block(row, layout)
    return next((part for part, of in _PARTS.items() if axes & of), "norms and others")


def _block(row: TensorRow, layout: Layout) -> str:
    """Return the part of a tensor of fixed sizes: that of its neighbours in layers of its kinds, else in any layer."""
    block = f"{row.module.rpartition('.')[0]}."
    neighbours = [each for each in layout.rows if each.module.startswith(block)]
    for near in ([each for each in neighbours if set(each.kinds) & set(row.kinds)], neighbours):
        axes = {axis for each in near for axis in _axes(each)}
        if axes & _OF_ATTENTION:
            return "attention"
        if Axis.EXPERT_NEURONS in axes:
            return "experts"
    return "mixers"


def _axes(row: TensorRow) -> set[Axis]:
    return {axis for dim in row.dims for axis in dim.axes}


def _lineage(lineage: Lineage) -> dict[str, Any]:
    proof = lineage.proof
    said = {
        "teacher": lineage.teacher.name,
        "aligned_from" if lineage.alignment else "pruned_from": lineage.source.name,
        "role": lineage.role,
        "aligned_by": (lineage.alignment or {}).get("method"),
        "kept_layers": list(lineage.kept_layers) or None,
        "tokens_trained": lineage.tokens_trained,
        "exported_after_tokens": lineage.exported_tokens,
        "learning_rate": lineage.learning_rate,
        "reloaded_logits_differ_by": None if proof is None else proof.max_abs_difference,
        "proof_holds": None if proof is None else proof.holds,
    }
    return {name: value for name, value in said.items() if value is not None}


def _run(path: Path, what: str) -> Shown:
    record, entries = read_run(path), Ledger(RunFolder(path.absolute()).ledger).entries()
    members = list_members(record)
    done = {entry.stage: entry for entry in entries}
    left = [size for size in record.sizes() if f"{size} evaluate" not in done]
    facts = {
        "teacher": record.teacher["source"],
        "teacher_parameters": record.teacher["num_parameters"],
        "data": record.plan.get("data"),
        "sizes": record.sizes(),
        "sizes_left": left,
        "finished": not left and "study" in done,
        "stages_done": len(done),
        "hours": round(sum(entry.seconds for entry in done.values()) / 3600, 2),
        "last_stage": entries[-1].stage if entries else None,
    }
    if as_uri(what) is None and (without := [name for name in record.lineages if not _has_weights(path, name)]):
        facts["students_without_weights"] = without
    columns = ("num_parameters", "kl_nats", "perplexity", "prefill_speedup", "decode_speedup", "tokens_trained")
    rows = [{"model": member.name, **{name: member.value(name) for name in columns}} for member in members]
    return Shown("run", what if as_uri(what) is not None else str(path), facts, {"members": rows})


def _has_weights(run: Path, student: str) -> bool:
    return any(RunFolder(run).student(student).glob("*.safetensors"))


def _scores(path: Path) -> Shown:
    from minitron_nas.importance.scores import ImportanceScores, about_scores  # deferred: imports torch

    scores = ImportanceScores.load(path)
    order = scores.layers.argsort().tolist()
    facts = {
        **about_scores(path),
        "hidden_channels": scores.hidden.shape[0],
        "layers": scores.layers.shape[0],
        "layers_that_matter_least": order[:_MOST_LISTED],
        "layers_that_matter_most": order[::-1][:_MOST_LISTED],
    }
    return Shown("scores", str(path), facts)


def _space(what: str, space: SearchSpace) -> Shown:
    facts: dict[str, Any] = {"description": space.description}
    facts |= {"tolerance": space.tolerance} if space.window is None else {"window": list(space.window)}
    facts["protected_layers"] = list(space.protected_layers)
    tables = {"axes": [{"axis": name, "sizes": _sizes(axis)} for name, axis in space.axes.given().items()]}
    if space.source is not None:
        shape = space.source_architecture()
        source = Outline.of_shape(what, shape, layout_of(shape.model_type))
        facts |= {f"source_{name}": value for name, value in _shape(source).items()}
        tables["source parameters by part"] = _parts(source)
    return Shown("space", what, facts, tables)


def _sizes(axis: AxisValues) -> dict[str, Any]:
    if axis.values is not None:
        return {"values": list(axis.values)}
    if axis.ratios is not None:
        return {"ratios": list(axis.ratios), "multiple_of": axis.multiple_of}
    return {"min_fraction": axis.min_fraction, "step_fraction": axis.step_fraction, "multiple_of": axis.multiple_of}


def _latency(what: str, model: LatencyModel) -> Shown:
    return Shown("latency model", what, model.told())


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _told(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int | float):
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_spaced(str(key))} {_told(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_told(inner) for inner in value) or "none"
    return str(value)


def _table(title: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    cells = [[_spaced(key) for key in rows[0]], *([_told(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    yield title
    for row in cells:
        first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(["", first, *(other.strip().rjust(len(other)) for other in others)])
