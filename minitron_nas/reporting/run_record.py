"""`RunRecord`: all that a report needs of a run folder, read once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import ArrowException

from minitron_nas.errors import LatencyError, RunFolderError
from minitron_nas.evaluation.latency import LatencyModel
from minitron_nas.reporting.written_plan import require_written
from minitron_nas.settings import parse_count
from minitron_nas.space.size import Size
from minitron_nas.storage.ledger import Entry, Ledger
from minitron_nas.storage.lineage import LINEAGE, Lineage, read_lineage
from minitron_nas.storage.plain_yaml import load_yaml
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.storage.schemas import (
    ALIGNMENT,
    BENCHMARKS,
    CANDIDATES,
    CORRELATIONS,
    CURVES,
    DIFFERENCES,
    EVALUATIONS,
    EXCLUSIONS,
    RATES,
    SAMPLES,
    SCORES,
    TEXTS,
    TRIALS,
    Table,
)
from minitron_nas.storage.tables import read_frame

_TEACHER: Mapping[str, Any] = {"source": None, "fingerprint": None, "num_parameters": None}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The content of a run folder; a table that was never written is empty.

    Attributes:
        name: The folder's name.
        plan_text: `plan.yaml` to the letter.
        plan: The resolved plan.
        versions: Package versions that the run began with.
        teacher: Source, fingerprint and number of parameters, as far as known.
        text: Fingerprint of the text; None where not known.
        stages: What was finished, in that order.
        devices: Name and number of those that the run began on; empty where not known.
        scores: Tables of importance, by the model that they say it of.
        lineages: Where each student comes from, by its name.
        latency: What predicted seconds in the search; None where nothing did.
        aligned: What `align` measured of each member that it wrote to `aligned/`.
        aligned_benchmarks: Rows of what these got in tasks, each called `aligned/NAME`.
        aligned_differences: Rows of how that differs from what others got.
    """

    name: str
    plan_text: str
    plan: Mapping[str, Any]
    versions: Mapping[str, str]
    teacher: Mapping[str, Any]
    text: str | None
    candidates: pd.DataFrame
    exclusions: pd.DataFrame
    trials: pd.DataFrame
    rates: pd.DataFrame
    correlations: pd.DataFrame
    texts: pd.DataFrame
    curves: pd.DataFrame
    evaluations: pd.DataFrame
    samples: pd.DataFrame
    benchmarks: pd.DataFrame
    differences: pd.DataFrame
    stages: tuple[Entry, ...]
    devices: Mapping[str, Any]
    scores: Mapping[str, Path]
    lineages: Mapping[str, Lineage]
    latency: LatencyModel | None
    aligned: pd.DataFrame
    aligned_benchmarks: Sequence[dict[str, Any]]
    aligned_differences: Sequence[dict[str, Any]]

    def sizes(self) -> list[str]:
        """Return the labels of all sizes that are planned or left a trace in the run, largest first."""
        frames = (self.candidates, self.exclusions, self.trials, self.curves, self.evaluations)
        labels = {label for frame in frames for label in frame["size"].dropna().unique()} | {
            one.size or name for name, one in self.lineages.items()
        }
        labels |= {Size.parse(size).label for size in self.plan.get("sizes") or ()}
        return sorted(labels, key=lambda label: Size.of_label(label).rank, reverse=True)

    def size_windows(self) -> dict[str, tuple[int, int]]:
        """Return the least and greatest parameters allowed for each size.

        They come from the plan's space; where the plan only names a preset, or the size is not told in parameters,
        from the candidates.
        """
        space = self.plan.get("space")
        rules = space if isinstance(space, dict) else self.plan
        windows = {label: _planned_window(rules, Size.of_label(label)) for label in self.sizes()}
        found = self.candidates.groupby("size")["num_parameters"].agg(["min", "max"])
        seen = {str(label): (int(low), int(high)) for label, low, high in found.itertuples()}
        chosen = {label: window or seen.get(label) for label, window in windows.items()}
        return {label: window for label, window in chosen.items() if window}


def read_run(folder: Path) -> RunRecord:
    """Read a run folder, finished or not.

    Raises:
        RunFolderError: If the folder or its `plan.yaml` is missing, or something in it cannot be read; names it.
    """
    text = _plan_text(folder)
    try:
        content = load_yaml(text)
    except ValueError as error:
        raise RunFolderError(f"{folder / 'plan.yaml'} is not YAML ({error}); restore it or build anew") from None
    if not isinstance(content, dict) or not isinstance(content.get("plan"), dict):
        raise RunFolderError(
            f"{folder / 'plan.yaml'} must hold a mapping with the key 'plan', as a build writes it; restore it, or "
            "give the folder of a build"
        )
    require_written(folder / "plan.yaml", content)
    students = sorted((folder / "students").glob(f"*/{LINEAGE}"))
    return RunRecord(
        name=folder.resolve().name,
        plan_text=text,
        plan=content["plan"],
        versions=_mapping(content.get("versions")),
        teacher={**_TEACHER, **_mapping(content.get("teacher"))},
        text=_mapping(content.get("data")).get("fingerprint"),
        candidates=_frame(folder, CANDIDATES),
        exclusions=_frame(folder, EXCLUSIONS),
        trials=_frame(folder, TRIALS),
        rates=_frame(folder, RATES),
        correlations=_frame(folder, CORRELATIONS),
        texts=_frame(folder, TEXTS),
        curves=_frame(folder, CURVES),
        evaluations=_frame(folder, EVALUATIONS),
        samples=_frame(folder, SAMPLES),
        benchmarks=_frame(folder, BENCHMARKS),
        differences=_frame(folder, DIFFERENCES),
        stages=tuple(Ledger(folder / "ledger.jsonl").entries()),
        devices=_mapping(content.get("devices")),
        scores={path.parent.name: path for path in _scored(folder)},
        lineages={path.parent.name: read_lineage(path.parent) for path in students},
        latency=_latency(folder, content["plan"]),
        aligned=_aligned(folder),
        aligned_benchmarks=_aligned_rows(folder, BENCHMARKS),
        aligned_differences=_aligned_rows(folder, DIFFERENCES),
    )


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read run folders, each once, named by the last parts of their paths that tell them apart.

    Args:
        folders: At least one.

    Raises:
        RunFolderError: If one or its `plan.yaml` is missing, or the plan is no mapping.
    """
    paths = list(dict.fromkeys(folder.resolve() for folder in folders))
    runs = [read_run(folder) for folder in folders[:1]] if len(paths) == 1 else [read_run(path) for path in paths]
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [replace(run, name="/".join(path.parts[-depth:])) for run, path in zip(runs, paths, strict=True)]


def _scored(folder: Path) -> list[Path]:
    """Return the tables of importance, the teacher's first."""
    found = (folder / "importance").glob(f"*/{SCORES.file_name}")
    return sorted(found, key=lambda path: (path.parent.name != "teacher", path.parent.name))


def _aligned(folder: Path) -> pd.DataFrame:
    """Return the tables of aligned members as one, by the folders' names."""
    frames = [_frame(path, ALIGNMENT).assign(model=path.name) for path in _aligned_folders(folder)]
    return pd.concat(frames, ignore_index=True) if frames else _frame(folder, ALIGNMENT)


def _aligned_rows(folder: Path, table: Table) -> list[dict[str, Any]]:
    """Return the rows of a table of all aligned members, under names that no member of the run itself has."""
    return [
        {**row, "model": f"{path.parent.name}/{path.name}"}
        for path in _aligned_folders(folder)
        for row in plain_rows(_frame(path, table))
    ]


def _aligned_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in RunFolder(folder).aligned.glob(f"*/{ALIGNMENT.file_name}"))


def _latency(folder: Path, plan: Mapping[str, Any]) -> LatencyModel | None:
    """Read the latency model that the run measured or its plan names; one that cannot be read has nothing to tell."""
    search = plan.get("search")
    named = search.get("latency") if isinstance(search, dict) else None
    try:
        return LatencyModel.load(RunFolder(folder).latency if named is None else Path(named))
    except LatencyError:
        return None


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a frame's rows as plain values, with None for what is missing."""
    names, missing = [str(name) for name in frame.columns], frame.isna().to_numpy().T
    columns = (
        [None if absent else value for value, absent in zip(values.tolist(), gaps, strict=True)]
        for (_, values), gaps in zip(frame.items(), missing, strict=True)
    )
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def best_trained(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row per trial that was trained: the completed rung with the least KL."""
    trained = trials[trials["tokens"] > 0].dropna(subset=["kl_nats"])
    trained = trained.sort_values(["size", "candidate", "kl_nats"], kind="stable")
    return trained.drop_duplicates(["size", "candidate"])


def _plan_text(folder: Path) -> str:
    if not folder.is_dir():
        raise RunFolderError(f"there is no run folder {folder}; give the folder that a build wrote to")
    path = folder / "plan.yaml"
    if not path.is_file():
        raise RunFolderError(f"{folder} holds no plan.yaml, so it is no run folder; give the folder of a build")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RunFolderError(f"{path} is no text ({error}); restore it or build anew") from None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _frame(folder: Path, table: Table) -> pd.DataFrame:
    """Read a table; a column that an older file lacks and a number that is not finite are missing."""
    try:
        frame = read_frame(folder, table).reindex(columns=[column.name for column in table.columns])
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise RunFolderError(
            f"{folder / table.file_name} cannot be read as a table ({reason}); the command that built the run writes "
            "it again"
        ) from None
    numbers = frame.select_dtypes("float").columns
    return frame.assign(**frame[numbers].replace([math.inf, -math.inf], math.nan))


def _planned_window(rules: Mapping[str, Any], size: Size) -> tuple[int, int] | None:
    if size.unit != "parameters":
        return None
    if rules.get("window"):
        low, high = rules["window"]
        return parse_count(low), parse_count(high)
    tolerance = rules.get("tolerance")
    if tolerance is None:
        return None
    low, high = size.window(tolerance)
    return int(low), int(high)
