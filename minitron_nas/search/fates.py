"""What became of every candidate of a size, as rows of `candidates.parquet`."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from minitron_nas.execution.runner import Outcome, last_line
from minitron_nas.search.contest import TrialRow
from minitron_nas.search.costing import Values
from minitron_nas.search.exploration import Exploration
from minitron_nas.search.pareto import pareto_front
from minitron_nas.search.pool import Pool
from minitron_nas.space.enumerate import RULE_REASONS, Enumeration
from minitron_nas.storage.schemas import CANDIDATES

_BLOCK = 1 << 16
"""Candidates that are written together."""


def candidate_rows(
    pool: Pool,
    explored: Exploration,
    predicted: Values | None,
    trials: Sequence[TrialRow],
    chosen: Sequence[str],
    others: Sequence[str],
    held_against: Mapping[str, int],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each candidate of a size, without the size: its costs, its screening, its fate.

    Args:
        pool: The candidates.
        explored: What was screened of them.
        predicted: (num_candidates,), the KL that the surrogate expects; None without one.
        trials: Every rung of every trial, in the order of rungs.
        chosen: Ids of the candidates that were chosen, the first member first.
        others: What the front weighs beside KL.
        held_against: Indices of what the choice is held against, by name.
    """
    kls = explored.kls()
    costs = pool.costs(others)
    on_front = {
        index for index, on in zip(kls, pareto_front([(kls[each], *costs[each]) for each in kls]), strict=True) if on
    }
    last = {trial.candidate.id: trial for trial in trials}
    names = {index: name for name, index in held_against.items()}
    for index, row in enumerate(_costed(pool)):
        screened = explored.outcomes.get(index)
        key = row["candidate"]
        outcome, reason = fate(screened, last.get(key), key in chosen, len(chosen) == 1)
        yield row | {
            "round": explored.rounds.get(index),
            "predicted_kl_nats": None if predicted is None else float(predicted[index]),
            "screen_kl_nats": screened.number("kl_nats") if screened is not None else None,
            "screen_loss_nats": screened.number("loss_nats") if screened is not None else None,
            "on_front": index in on_front,
            "reference": names.get(index),
            "outcome": outcome,
            "reason": reason,
        }


def exclusion_rows(found: Enumeration, pool: Pool) -> list[dict[str, Any]]:
    """Return a row of `exclusions.parquet`, without the size, for each rule and constraint that left shapes out.

    Args:
        found: Says what the rules left out.
        pool: Says what the constraints left out.
    """
    rules = [(rule, RULE_REASONS[rule], count) for rule, count in found.excluded.items()]
    rules += [(text, "the plan's search.constraints", count) for text, count in pool.excluded.items() if count]
    return [{"rule": rule, "reason": reason, "num_shapes": count} for rule, reason, count in rules]


def fate(screened: Outcome | None, last: TrialRow | None, won: bool, alone: bool = True) -> tuple[str, str]:
    """Return how far a candidate came, as the column `outcome` says it, and why no further.

    Args:
        screened: Of its screening; None if the sample left it out.
        last: Its last rung; None if it was not trained.
        won: Whether it was chosen.
        alone: Whether only the lowest KL was; else it was chosen as a point of the front.
    """
    if screened is None:
        return "not_sampled", "it was not screened: others promised more, or search.max_screened was reached"
    if screened.status != "completed":
        return "failed", f"screening {screened.status}: {last_line(screened.error)}"
    return _untrained_fate(screened, won, alone) if last is None else _trained_fate(last, won, alone)


def _untrained_fate(screened: Outcome, won: bool, alone: bool) -> tuple[str, str]:
    kl = screened.number("kl_nats")
    if kl is None or not isfinite(kl):
        return "failed", "its untrained KL is not finite"
    untrained = f"{kl:.3f} nats"
    best = f"lowest untrained KL, {untrained}" if alone else f"on the front with an untrained KL of {untrained}"
    other = f"its untrained KL of {untrained} was not among the best"
    return ("chosen", f"{best}; none was trained") if won else ("screened_out", other)


def _trained_fate(last: TrialRow, won: bool, alone: bool) -> tuple[str, str]:
    if last.outcome.status != "completed":
        return "failed", f"rung {last.rung} {last.outcome.status}: {last_line(last.outcome.error)}"
    kl = last.outcome.number("kl_nats")
    when = f"after rung {last.rung}" if last.tokens else "before any training"
    if kl is None or not isfinite(kl):
        return "failed", f"its KL {when} is not finite"
    if won:
        best = f"lowest KL, {kl:.3f} nats" if alone else f"on the front with a KL of {kl:.3f} nats"
        return "chosen", f"{best}, {when}"
    told = f" (paired test: p = {last.p_worse:.2g})" if last.p_worse is not None else ""
    return "stopped", f"its KL of {kl:.3f} nats {when} was beaten{told}"


def told_losses(what: str, outcomes: Mapping[str, Outcome]) -> str | None:
    """Say in one line how many candidates could not be compared, and why the first of each kind; None if all could.

    Args:
        what: They went through, such as "90k screen".
        outcomes: By candidate id.
    """
    told = []
    for status, happened in (("failed", "failed"), ("infeasible", "did not fit into memory")):
        losses = [(key, outcome) for key, outcome in outcomes.items() if outcome.status == status]
        if losses:
            key, first = losses[0]
            told.append(f"{len(losses)} of {len(outcomes)} {happened} ({key}: {last_line(first.error)})")
    return f"{what}: {', '.join(told)}; they took no further part" if told else None


def _costed(pool: Pool) -> Iterator[dict[str, Any]]:
    """Yield the shape and the costs of every candidate."""
    names = [column.name for column in CANDIDATES.columns if column.name in pool.columns]
    for start in range(0, len(pool), _BLOCK):
        block = slice(start, start + _BLOCK)
        values = zip(*(pool.columns[name][block].tolist() for name in names), strict=True)
        for candidate, row in zip(pool.candidates[block], values, strict=True):
            yield {"candidate": candidate.id, **dict(zip(names, row, strict=True))}
