"""What stands in the sections of the report, as plain rows and sentences."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd

from minitron_nas.architecture.spec import EXPERT_FIELDS, MAMBA_FIELDS, SHAPE_LETTERS
from minitron_nas.reporting import numerals
from minitron_nas.reporting.run_record import RunRecord, best_trained, plain_rows
from minitron_nas.settings import parse_count
from minitron_nas.space.size import Size

Row: TypeAlias = Mapping[str, Any]

MAX_CANDIDATE_ROWS = 5_000
"""Of all runs of a page together."""

OUTCOMES = ("chosen", "stopped", "failed", "screened_out", "not_sampled")
CANDIDATE_COLUMNS = (
    ("size", "size", "text"),
    ("outcome", "outcome", "text"),
    ("candidate", "shape", "text"),
    ("reason", "why", "text"),
    ("num_parameters", "parameters", "whole"),
    ("num_hidden_layers", "layers", "whole"),
    ("hidden_size", "hidden", "whole"),
    ("intermediate_size", "FFN", "whole"),
    ("num_attention_heads", "heads", "whole"),
    ("num_key_value_heads", "KV", "whole"),
    ("num_experts", "experts", "whole"),
    ("moe_intermediate_size", "FFN of each", "whole"),
    ("shared_expert_intermediate_size", "FFN beside them", "whole"),
    ("mamba_num_heads", "Mamba heads", "whole"),
    ("mamba_head_dim", "channels of each", "whole"),
    ("screen_kl_nats", "KL untrained", "nats"),
    ("trained_kl_nats", "KL trained", "nats"),
)
"""Column, heading and number format of the table of candidates; sizes that no candidate has are left out."""


def missing_parts(run: RunRecord) -> list[str]:
    """Say in words which parts of a run are not there yet."""
    parts = (
        (run.candidates, "no candidates: the search space was not enumerated yet"),
        (run.trials, "no trials: no candidate was trained yet"),
        (run.curves, "no distillation curves: no student was distilled yet"),
        (run.evaluations, "no evaluations: quality, speed and memory were not measured yet"),
    )
    untrained = (run.plan.get("search") or {}).get("num_rungs") == 0
    missing = [sentence for frame, sentence in parts if frame.empty and not (untrained and frame is run.trials)]
    evaluated = set(run.evaluations["model"])
    if evaluated:
        missing += [f"no evaluation of {size}" for size in run.sizes() if size not in evaluated]
    return missing


def asked(run: RunRecord) -> list[tuple[str, str]]:
    """Return what a run was asked for, in words: what it is, and what the plan says of it.

    Args:
        run: The run.
    """
    plan, windows = run.plan, run.size_windows()
    search, distillation = plan.get("search") or {}, plan.get("distillation") or {}
    sizes = []
    for label in run.sizes():
        within = "" if label not in windows else " to ".join(numerals.count(edge) for edge in windows[label])
        sizes.append(asked_of(run, label) or f"{label} ({within})")
    data = plan.get("data")
    sources = [data] if isinstance(data, str) else data or []
    text = [str(one.get("path")) if isinstance(one, dict) else str(one) for one in sources]
    told = [
        ("Sizes", "; ".join(sizes)),
        ("Text", ", ".join(text)),
        ("Chosen by", ", ".join(words(name) for name in search.get("objectives") or ())),
        ("Search", _searched(search)),
        ("Distillation", _distilled(distillation)),
        ("Held against", ", ".join(words(name) for name in plan.get("baselines") or ())),
    ]
    return [(term, said) for term, said in told if said]


def _searched(search: Mapping[str, Any]) -> str:
    limits = (
        ("max_screened", "shape", " screened"),
        ("num_finalists", "finalist", ""),
        ("num_rungs", "rung", ""),
    )
    told = [
        f"{number:,} {noun}{'' if number == 1 else 's'}{rest}"
        for name, noun, rest in limits
        if isinstance(number := search.get(name), int)
    ]
    beside = f", beside what {earlier} has screened" if (earlier := search.get("extends")) else ""
    return f"a size: at most {', '.join(told)}{beside}" if told else ""


def _distilled(distillation: Mapping[str, Any]) -> str:
    tokens, loss = distillation.get("tokens"), distillation.get("loss")
    told = [f"{numerals.count(parse_count(tokens))} tokens a student"] if tokens is not None else []
    return ", ".join(told + ([f"loss {words(loss)}"] if loss else []))


def candidate_columns(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return those of CANDIDATE_COLUMNS that the run's candidates have.

    Args:
        run: The run.
    """
    absent = {name for name in (*EXPERT_FIELDS, *MAMBA_FIELDS) if run.candidates[name].isna().all()}
    return [column for column in CANDIDATE_COLUMNS if column[0] not in absent]


def shape_letters(run: RunRecord) -> str:
    """Say what the letters in the names of the run's candidates stand for.

    Args:
        run: The run.
    """
    told = candidate_columns(run)
    return ", ".join(f"{SHAPE_LETTERS[name]} {heading}" for name, heading, _ in told if name in SHAPE_LETTERS)


def candidate_rows(run: RunRecord, num_runs: int = 1) -> list[list[Any]]:
    """Return the table of candidates in the order of its columns.

    Sizes stand in descending order, within a size the chosen first, then by trained and untrained
    KL. Past a run's share of MAX_CANDIDATE_ROWS those that came least far, of these those with the
    greatest KL, and are not on the front, are left out.

    Args:
        run: The run.
        num_runs: Of the page.
    """
    trained = best_trained(run.trials).rename(columns={"kl_nats": "trained_kl_nats"})
    frame = run.candidates.merge(
        trained[["size", "candidate", "trained_kl_nats"]], how="left", on=["size", "candidate"]
    )
    frame = frame.assign(
        place=frame["size"].map({size: place for place, size in enumerate(run.sizes())}),
        rank=frame["outcome"].map({name: place for place, name in enumerate(OUTCOMES)}).fillna(len(OUTCOMES)),
        behind=frame["on_front"] != True,  # noqa: E712  # null is not on it
    )
    order = ["rank", "trained_kl_nats", "screen_kl_nats"]
    if len(frame) > (most := MAX_CANDIDATE_ROWS // num_runs):
        frame = frame.sort_values(["behind", *order], kind="stable").head(most)
    frame = frame.sort_values(["place", *order, "candidate"], kind="stable")
    return [list(row.values()) for row in plain_rows(frame[[column for column, _, _ in candidate_columns(run)]])]


def asked_of(run: RunRecord, size: str) -> str:
    """Say what a size asks of its models where it is not told in parameters; empty otherwise.

    Args:
        run: The run.
        size: The label.
    """
    asked, search = Size.of_label(size), run.plan.get("search") or {}
    if asked.unit == "parameters":
        return ""
    if asked.is_speed:
        return f"at least {asked.told(asked.value)} {asked.words}, as the latency model predicts it"
    counted = (search.get(name) for name in ("batch_size", "context_tokens"))
    batch, context = (numerals.whole(number) for number in counted)
    told = asked.told(asked.value)
    return f"at most {told} for 16-bit weights and the cache of {batch} x {context} tokens"


def held_against(candidates: pd.DataFrame, size: str) -> str:
    """Say how far from the teacher the choice of a size began beside a random shape and the largest one.

    Args:
        candidates: Of the run.
        size: The label.

    Returns:
        A sentence; empty while nothing was chosen, and where neither was screened.
    """
    mine = candidates[candidates["size"] == size].dropna(subset=["screen_kl_nats"])
    chosen = mine[mine["outcome"] == "chosen"]["screen_kl_nats"]
    others = [
        f"{words} {numerals.nats(float(found.iloc[0]))}"
        for name, words in (("random", "a random shape"), ("largest", "the one with the most parameters"))
        if not (found := mine[mine["reference"] == name]["screen_kl_nats"]).empty
    ]
    if chosen.empty or not others:
        return ""
    return f"Untrained KL: the choice {numerals.nats(float(chosen.min()))}, {', '.join(others)}"


def samples(run: RunRecord, models: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return for each held-out beginning its text, and how each model that was measured goes on.

    Args:
        run: The run.
        models: Names of its models, in the order of the report.
    """
    found = list[tuple[str, list[tuple[str, str]]]]()
    for _, rows in run.samples.sort_values("prompt", kind="stable").groupby("prompt"):
        texts = dict(zip(rows["model"], rows["text"], strict=True))
        found.append((str(rows["prompt_text"].iloc[0]), [(name, texts[name]) for name in models if name in texts]))
    return found


def generation(trials: pd.DataFrame, size: str) -> str:
    """Say whether the trial with the lowest KL of a size's last rung also writes most like the teacher.

    Args:
        trials: Of the run.
        size: The label.

    Returns:
        A sentence; empty where fewer than two trials of the last rung have continued text.
    """
    mine = trials[trials["size"] == size]
    last = mine[mine["rung"] == mine["rung"].max()].dropna(subset=["agreement_tokens", "kl_nats"])
    if len(last) < 2:
        return ""
    nearest, alike = (last.loc[last["kl_nats"].idxmin()], last.loc[last["agreement_tokens"].idxmax()])
    told = f"{nearest['candidate']} has the lowest KL and follows the teacher's own continuations for "
    shared = f"{nearest['agreement_tokens']:.1f} tokens"
    if nearest["agreement_tokens"] == alike["agreement_tokens"]:
        return f"{told}{shared}, the longest of {len(last):,} trials"
    return (
        f"KL and generation disagree: {told}{shared}, {alike['candidate']} for {alike['agreement_tokens']:.1f} with "
        f"a KL of {numerals.nats(float(alike['kl_nats']))} against {numerals.nats(float(nearest['kl_nats']))}"
    )


def outcome_counts(candidates: pd.DataFrame, size: str) -> str:
    """Say how many candidates of one size ended how, e.g. "12 candidates: 1 chosen, 11 not sampled"."""
    outcomes = candidates[candidates["size"] == size]["outcome"].value_counts()
    told = [f"{outcomes[name]:,} {words(name)}" for name in OUTCOMES if name in outcomes]
    return f"{int(outcomes.sum()):,} candidates: {', '.join(told)}" if told else "no candidates yet"


def failures(run: RunRecord) -> list[str]:
    """Say for each size how many candidates failed and so were not compared, and why the first of them did."""
    failed = run.candidates[run.candidates["outcome"] == "failed"]
    told = []
    for size in run.sizes():
        rows, all_rows = failed[failed["size"] == size], run.candidates[run.candidates["size"] == size]
        if len(rows):
            first = rows.iloc[0]
            told.append(
                f"{size}: {len(rows):,} of {len(all_rows):,} candidates ({first['candidate']}: {first['reason']})"
            )
    return told


def exclusion_rows(run: RunRecord) -> list[Row]:
    """Return what each rule left out: largest size first, then the strictest rule."""
    sizes = run.sizes()
    return sorted(plain_rows(run.exclusions), key=lambda row: (sizes.index(row["size"]), -row["num_shapes"]))


def alignment_rows(run: RunRecord) -> list[dict[str, Any]]:
    """Return each aligned member with what was measured `before` and `after`, by its name."""
    looks = {(row["model"], row["look"]): row for row in plain_rows(run.aligned)}
    names = dict.fromkeys(model for model, _ in looks)
    whole = [name for name in names if {(name, "before"), (name, "after")} <= looks.keys()]
    return [{"model": name, **{look: looks[name, look] for look in ("before", "after")}} for name in whole]


def words(name: str | None) -> str:
    """Return a name of the tables as words."""
    return (name or numerals.MISSING).replace("_", " ")


def correlation_rows(run: RunRecord, size: str) -> Sequence[Row]:
    """Return how well each cheaper look at a size's candidates foretold a dearer one, where it is known."""
    known = run.correlations[run.correlations["size"] == size].dropna(subset=["spearman"])
    return plain_rows(known)


def rate_rows(run: RunRecord, size: str) -> Sequence[Row]:
    """Return the learning rates that were tried at a size, ascending."""
    return plain_rows(run.rates[run.rates["size"] == size].sort_values("learning_rate"))


def benchmark_table(run: RunRecord, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per task, metric and setting that a model was asked, with a value per model where there is one.

    A value comes with its `difference` to the teacher's, a row of `differences.parquet`; None where there is none.

    Args:
        run: The run.
        names: The models, in the order of the columns.
    """
    keys = ("task", "metric", "task_version", "num_fewshot", "limit")
    to_teacher = {
        (row["model"], row["task"], row["metric"]): row for row in _all_differences(run) if row["other"] == "teacher"
    }
    table: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in [*plain_rows(run.benchmarks), *run.aligned_benchmarks]:
        difference = to_teacher.get((row["model"], row["task"], row["metric"]))
        cell = {**row, "difference": difference}
        table.setdefault(tuple(row[key] for key in keys), {})[row["model"]] = cell
    ordered = sorted(table.items(), key=lambda item: [str(part) for part in item[0]])
    return [
        {
            **dict(zip(keys, setting, strict=True)),
            "documents": _documents(found.values()),
            "cells": [found.get(name) for name in names],
        }
        for setting, found in ordered
        if not found.keys().isdisjoint(names)
    ]


def _documents(rows: Iterable[Row]) -> str:
    """Say how many documents models have answered; runs of before say only how many at most."""
    row = next(iter(rows))
    if row["num_documents"] is not None:
        return numerals.whole(row["num_documents"])
    return "all" if row["limit"] is None else f"at most {numerals.whole(row['limit'])}"


def against_others(run: RunRecord, model: str) -> dict[str, Any]:
    """Return how a model's tasks differ from those of others than the teacher, on the same documents.

    Args:
        run: The run.
        model: Its name: a student, which is held against its size's baselines, or an aligned one, against what it was.

    Returns:
        `others`, their names, and `rows`: task, metric and for each of them its row of `differences.parquet`, if any.
    """
    mine = [row for row in _all_differences(run) if row["model"] == model and row["other"] != "teacher"]
    names = list(dict.fromkeys(row["other"] for row in mine))
    table: dict[tuple[str, str], dict[str, Row]] = {}
    for row in sorted(mine, key=lambda row: (row["task"], row["metric"])):
        table.setdefault((row["task"], row["metric"]), {})[row["other"]] = row
    rows = [
        {"task": task, "metric": metric, "cells": [found.get(name) for name in names]}
        for (task, metric), found in table.items()
    ]
    return {"others": names, "rows": rows}


def _all_differences(run: RunRecord) -> list[Row]:
    return [*plain_rows(run.differences), *run.aligned_differences]


def checks(run: RunRecord) -> list[tuple[str, bool | None, str]]:
    """Return what was checked: (claim, whether it holds or None if unknown, the evidence)."""
    found: list[tuple[str, bool | None, str]] = []
    sizes = run.sizes()
    for size, lineage in sorted(run.lineages.items(), key=lambda item: (sizes.index(item[1].size or item[0]), item[0])):
        proof = lineage.proof
        claim = f"{size} reloads with stock transformers and gives the same logits"
        evidence = "no proof"
        if proof is not None:
            difference, allowed = (numerals.tiny(value) for value in (proof.max_abs_difference, proof.tolerance))
            evidence = f"largest difference {difference}, allowed {allowed}"
        found.append((claim, None if proof is None else proof.holds, evidence))
        wanted, used = run.teacher["fingerprint"], lineage.teacher.fingerprint
        if lineage.correction:
            used = lineage.correction.get("teacher")
        evidence = f"{used or 'unknown'} in the lineage, {wanted or 'unknown'} in the plan"
        claim = f"{size} descends from the plan's teacher"
        found.append((claim, wanted == used if wanted and used else None, evidence))
    return found
