"""What the stages of a run took: wall time, devices, tokens, floating-point operations and money."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from minitron_nas.architecture.costs import forward_flops_per_token
from minitron_nas.architecture.spec import SHAPE_FIELDS, Architecture
from minitron_nas.errors import MinitronNasError
from minitron_nas.families.catalog import layout_of
from minitron_nas.reporting.run_record import RunRecord, plain_rows
from minitron_nas.storage.ledger import Entry

TRAINING = 3
"""Forward and backward together cost about three forward passes."""

_SEARCHES = ("screen", "tournament", "rate")
"""Stages that look for a size's shape and learning rate, by the last word of their names."""

Work: TypeAlias = tuple[float | None, float | None]
"""Tokens and FLOPs, None where not known."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage took.

    Attributes:
        stage: Its name; `all` of them together.
        seconds: Wall time, also where its work was done in another stage beside that of others; None where not known.
        device_hours: Of all devices of the run, for as long as the stage took; None where not known.
        tokens: That models read in it or learned from; None where it is no such stage, or not known.
        flops: Of these tokens; None where not known.
        money: What the devices cost for so long; None where the plan says no rate.
    """

    stage: str
    seconds: float | None
    device_hours: float | None
    tokens: float | None
    flops: float | None
    money: float | None


def stage_costs(run: RunRecord) -> list[StageCost]:
    """Return what each finished stage took, in the order in which they were finished, and all of them last.

    Args:
        run: The run.
    """
    runner = run.plan.get("runner") or {}
    rate, devices, work = runner.get("price_per_device_hour"), run.devices.get("number") or 1, _Work(run)
    found = list[StageCost]()
    for stage, seconds in _seconds(run.stages).items():
        hours = seconds * devices / 3600
        tokens, flops = work.of(stage)
        found.append(StageCost(stage, seconds, hours, tokens, flops, None if rate is None else rate * hours))
    if found:
        found.append(_together("all", found))
    return found


def member_costs(run: RunRecord, name: str) -> dict[str, StageCost]:
    """Return what a student took: the search of its size, its training, and all of the run so far.

    Where the ledger of the run is gone, tokens and operations are still known.

    Args:
        run: The run.
        name: The student's.
    """
    size = run.lineages[name].size or name
    stages = {cost.stage: cost for cost in stage_costs(run)}
    parts = {"search": [f"{size} {kind}" for kind in _SEARCHES], "training": [f"{name} distil"]}
    work, found = _Work(run), dict[str, StageCost]()
    for part, names in parts.items():
        of_part = [stages.get(stage) or StageCost(stage, None, None, *work.of(stage), None) for stage in names]
        found[part] = _together(part, of_part)
    return {**found, **({"all": stages["all"]} if stages else {})}


def _together(name: str, costs: Sequence[StageCost]) -> StageCost:
    columns = ("seconds", "device_hours", "tokens", "flops", "money")
    return StageCost(name, *(_sum(getattr(cost, column) for cost in costs) for column in columns))


def _seconds(stages: Iterable[Entry]) -> dict[str, float]:
    """Return what each stage took, wherever it was; together it is what all took."""
    entries = {entry.stage: entry for entry in stages}
    seconds = {stage: entry.seconds for stage, entry in entries.items()}
    for stage, entry in entries.items():
        for other in entry.of_others.keys() & entries.keys():
            seconds[stage] -= entry.of_others[other]
            seconds[other] += entry.of_others[other]
    return seconds


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


class _Work:
    """Tokens and FLOPs of the stages, from the plan and the tables."""

    def __init__(self, run: RunRecord) -> None:
        self._run = run
        text, search = run.plan.get("text") or {}, run.plan.get("search") or {}
        evaluation = run.plan.get("evaluation") or {}
        length, num_texts = text.get("sequence_length"), 1 + len(evaluation.get("texts") or ())
        self._context = (length or 0) // 2
        self._validation = _product(text.get("validation_samples"), length, num_texts)
        self._calibration = _product(text.get("calibration_samples"), length)
        self._screened = _product(search.get("screen_sequences"), length, num_texts) or self._validation
        self._teacher = _teacher(run)

    def of(self, stage: str) -> Work:
        """Return what a stage read or learned from, by the last word of its name."""
        model, _, kind = stage.rpartition(" ")
        if kind in ("signal", "score", "prepare", "evaluate"):
            tokens = {"signal": self._spoken(), "evaluate": self._validation}.get(kind, self._calibration)
            return tokens, _product(tokens, self._flops_of(model))
        if kind == "screen":
            rows = self._run.candidates[self._run.candidates["size"] == model].dropna(subset=["screen_kl_nats"])
            rows = rows[rows["round"] != 0]  # which an earlier run paid for
            flops = float(rows["forward_flops_per_token"].sum())
            return _product(len(rows), self._screened), _product(flops, self._screened)
        if kind in ("tournament", "rate"):
            return self._trained(self._run.trials if kind == "tournament" else self._run.rates, model)
        if kind == "distil":
            mine = self._run.curves[self._run.curves["model"] == model]["tokens"]
            tokens = None if mine.empty else float(mine.max())
            return tokens, _product(TRAINING, tokens, self._flops_of(model))
        return None, None

    def _spoken(self) -> float | None:
        """Tokens over which a teacher speaks: the held-out ones, and those of a student's training if they are kept."""
        kept = (self._run.plan.get("distillation") or {}).get("teacher_signal") != "online"
        text = next((entry.result for entry in self._run.stages if entry.stage == "text"), None)
        learned = text.get("distillation_tokens") if isinstance(text, dict) else None
        return self._validation if not kept else _total(self._validation, learned)

    def _trained(self, rows: Any, size: str) -> Work:
        """Sum up short trainings, each as far as it came."""
        key = ["size", "candidate"] + (["learning_rate"] if "learning_rate" in rows else [])
        last = rows[rows["size"] == size].groupby(key, as_index=False)["tokens"].max()
        tried = self._run.candidates["candidate"].isin(last["candidate"])
        costs = self._run.candidates.loc[tried, ["size", "candidate", "forward_flops_per_token"]].drop_duplicates()
        told = last.merge(costs, how="left", on=["size", "candidate"])
        known = (told["tokens"] * told["forward_flops_per_token"]).dropna()
        return float(last["tokens"].sum()), TRAINING * float(known.sum()) if len(known) else None

    def _flops_of(self, model: str) -> float | None:
        """Return the FLOPs of a model's forward pass for a token."""
        if self._teacher is None:
            return None
        row = {} if model == "teacher" else self._shape(model)
        if row is None:
            return None
        try:
            shape = replace(self._teacher, **row)
            return float(forward_flops_per_token(shape, layout_of(shape.model_type), self._context))
        except MinitronNasError:
            return None

    def _shape(self, model: str) -> dict[str, Any] | None:
        found = plain_rows(self._run.evaluations[self._run.evaluations["model"] == model])
        if found:
            return {name: int(found[0][name]) for name in SHAPE_FIELDS if found[0][name] is not None}
        lineage = self._run.lineages.get(model)
        if lineage is None:
            return None
        return {name: size for name in SHAPE_FIELDS if (size := lineage.architecture.get(name)) is not None}


def _teacher(run: RunRecord) -> Architecture | None:
    """Return the teacher's shape, as the first student that was cut from it tells it."""
    names = {field.name for field in fields(Architecture)}
    for lineage in run.lineages.values():
        if lineage.source.name in ("teacher", None):
            try:
                known: Mapping[str, Any] = lineage.source_architecture
                return Architecture(**{name: value for name, value in known.items() if name in names})
            except (MinitronNasError, TypeError):
                return None
    return None


def _product(*factors: float | None) -> float | None:
    result = 1.0
    for factor in factors:
        if factor is None:
            return None
        result *= factor
    return result


def _total(*terms: float | None) -> float | None:
    return None if any(term is None for term in terms) else sum(term for term in terms if term is not None)
