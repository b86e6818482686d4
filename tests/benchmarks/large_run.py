"""A run of any size, without a model: the example's tables, with as many candidates and trials as are asked for."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from minitron_nas.search.pareto import pareto_front
from minitron_nas.storage.schemas import CANDIDATES, TEXTS, TRIALS, Table

EXAMPLE = Path(__file__).resolve().parents[2] / "reports" / "example"
ROUND_SIZE = 8
TEXT_NAMES = ("data", "benchmarks")


def make_run(folder: Path, num_candidates: int, num_screened: int, num_trials: int, rungs: int = 3) -> None:
    """Write a run whose sizes share these numbers evenly, and whose shapes differ one by one.

    Args:
        folder: Must not exist.
        num_candidates: Of all sizes.
        num_screened: Of these.
        num_trials: Of these; half of them go on at the end of each rung, a hundredth fails in its first.
        rungs: Of the tournaments.
    """
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("report.html"))
    known = {table: pd.read_parquet(folder / table.file_name) for table in (CANDIDATES, TRIALS, TEXTS)}
    sizes = list(dict.fromkeys(known[CANDIDATES]["size"]))
    per_size = [number // len(sizes) for number in (num_candidates, num_screened, num_trials)]
    candidates, trials = list[pd.DataFrame](), list[pd.DataFrame]()
    for size in sizes:
        random = np.random.default_rng(0)
        candidates.append(_candidates(_of(known[CANDIDATES], "size", size), *per_size, random))
        trials.append(_trials(_of(known[TRIALS], "size", size), candidates[-1], per_size[2], rungs, random))
    frames = {CANDIDATES: pd.concat(candidates), TRIALS: pd.concat(trials)}
    frames[TEXTS] = pd.concat([_of(known[TEXTS], "look", "member"), *_texts(frames[CANDIDATES], frames[TRIALS])])
    for table, frame in frames.items():
        _write(folder, table, frame)


def _candidates(
    rows: pd.DataFrame, number: int, num_screened: int, num_trials: int, random: np.random.Generator
) -> pd.DataFrame:
    """Return rows of new shapes whose fates are those of the rows of a real size: the first chosen, then trials."""
    fates = {name: rows[rows["outcome"] == name].iloc[[0]] for name in dict.fromkeys(rows["outcome"])}
    counts = {
        "chosen": 1,
        "stopped": num_trials - 1,
        "screened_out": num_screened - num_trials,
        "not_sampled": number - num_screened,
    }
    frame = pd.concat([fates[name].loc[np.repeat(fates[name].index, count)] for name, count in counts.items()])
    place = np.arange(number)
    shapes = {
        "num_hidden_layers": 16 + place % 17,
        "hidden_size": 384 + 4 * (place // 17 % 49),
        "intermediate_size": 768 + 2 * (place // (17 * 49)),
    }
    sizes = [*shapes.values(), frame["num_attention_heads"], frame["num_key_value_heads"]]
    parts = [letter + pd.Series(size).astype(str).to_numpy() for letter, size in zip("lhfqk", sizes, strict=True)]
    kls = np.sort(random.gamma(4, 0.3, num_screened) + 0.4)
    screened = place < num_screened
    column = np.full(number, np.nan)
    column[screened] = kls * random.normal(1, 0.05, num_screened)
    parameters = (frame["num_parameters"] * random.uniform(0.95, 1.05, number)).astype(int).to_numpy()
    return frame.assign(
        **shapes,
        candidate=["-".join(each) for each in zip(*parts, strict=True)],
        num_parameters=parameters,
        memory_bytes=2 * parameters + 10**8,
        predicted_kl_nats=random.gamma(4, 0.3, number) + 0.4,
        round=np.where(screened, random.permutation(number) % max(1, num_screened // ROUND_SIZE) + 1, np.nan),
        screen_kl_nats=column,
        screen_loss_nats=column + 3.4,
        on_front=pareto_front(np.column_stack([column, parameters])),
        reference=None,
    )


def _trials(
    rows: pd.DataFrame, candidates: pd.DataFrame, number: int, rungs: int, random: np.random.Generator
) -> pd.DataFrame:
    found, alive = list[pd.DataFrame](), candidates.iloc[:number]
    for rung in range(1, rungs + 1):
        failed = (np.arange(len(alive)) % 100 == 99) & (rung == 1)
        promoted = ~failed & (np.arange(len(alive)) < (number >> rung if rung < rungs else 1))
        kls = np.where(failed, np.nan, alive["screen_kl_nats"] * 0.8**rung * random.normal(1, 0.03, len(alive)))
        found.append(
            rows.iloc[np.zeros(len(alive), dtype=int)].assign(
                candidate=alive["candidate"].to_numpy(),
                rung=rung,
                tokens=rows["tokens"].iloc[0] * 2 ** (rung - 1),
                kl_nats=kls,
                loss_nats=kls + 3.4,
                promoted=promoted,
                status=np.where(failed, "infeasible", "completed"),
                error=np.where(failed, "OutOfMemoryError: tried to allocate 1.50 GiB", None),
                num_parameters=alive["num_parameters"].to_numpy(),
                seconds=random.uniform(60, 120, len(alive)) * rung,
            )
        )
        alive = alive[promoted]
    return pd.concat(found)


def _texts(candidates: pd.DataFrame, trials: pd.DataFrame) -> list[pd.DataFrame]:
    screened = candidates.dropna(subset=["screen_kl_nats"]).assign(look="screen", kl=lambda rows: rows.screen_kl_nats)
    tried = trials.dropna(subset=["kl_nats"]).assign(look=lambda rows: "rung " + rows.rung.astype(str))
    looks = pd.concat([screened, tried.assign(kl=tried["kl_nats"])])
    told = pd.DataFrame({"size": looks["size"], "model": looks["candidate"], "look": looks["look"], "loss_nats": None})
    return [
        told.assign(text=text, kl_nats=looks["kl"] * scale) for text, scale in zip(TEXT_NAMES, (0.8, 1.2), strict=True)
    ]


def _of(frame: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    return frame[frame[column] == value]


def _write(folder: Path, table: Table, frame: pd.DataFrame) -> None:
    schema = table.arrow_schema()
    columns = frame.reindex(columns=schema.names)
    pq.write_table(pa.Table.from_pandas(columns, schema=schema, preserve_index=False), folder / table.file_name)
