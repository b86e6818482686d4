"""What became of every candidate of a size, as rows of `candidates.parquet`."""

from collections.abc import Mapping, Sequence
from typing import Any

from minitron_nas.architecture.costs import (
    count_embedding_parameters,
    forward_flops_per_token,
    kv_cache_bytes_per_token,
)
from minitron_nas.architecture.layout import Layout
from minitron_nas.execution.runner import Outcome, last_line
from minitron_nas.search.pareto import pareto_front
from minitron_nas.search.tournament import TrialRow
from minitron_nas.space.enumerate import RULE_REASONS, Candidate, Enumeration


def candidate_rows(
    found: Enumeration,
    layout: Layout,
    context_tokens: int,
    screened: Mapping[str, Outcome],
    trials: Sequence[TrialRow],
    winner: Candidate,
) -> list[dict[str, Any]]:
    """Return a row for each candidate of a size, without the size: its costs, its screening, its fate.

    Args:
        found: The candidates.
        layout: The table of their family.
        context_tokens: Mean number of tokens attended to, for the FLOPs.
        screened: Outcomes of the screening by candidate id.
        trials: Every rung of every trial, in the order of rungs.
        winner: The candidate that was chosen.
    """
    rows = [_row(candidate, layout, context_tokens, screened.get(candidate.id)) for candidate in found.candidates]
    front = pareto_front([(row["num_parameters"], _or_nan(row["screen_kl_nats"])) for row in rows])
    last = {trial.candidate.id: trial for trial in trials}
    for row, on_front in zip(rows, front, strict=True):
        key = row["candidate"]
        outcome, reason = fate(screened.get(key), last.get(key), key == winner.id)
        row |= {"on_front": on_front, "outcome": outcome, "reason": reason}
    return rows


def exclusion_rows(found: Enumeration) -> list[dict[str, Any]]:
    """Return a row of `exclusions.parquet`, without the size, for each rule that left shapes out."""
    return [{"rule": rule, "reason": RULE_REASONS[rule], "num_shapes": count} for rule, count in found.excluded.items()]


def fate(screened: Outcome | None, last: TrialRow | None, won: bool) -> tuple[str, str]:
    """Return how far a candidate came, as the column `outcome` says it, and why no further.

    Args:
        screened: Of its screening; None if the sample left it out.
        last: Its last rung; None if it was not trained.
        won: Whether it was chosen.
    """
    if screened is None:
        return "not_sampled", "the space was larger than search.max_screened and the sample left it out"
    if screened.status != "completed":
        return "failed", f"screening {screened.status}: {last_line(screened.error)}"
    if last is None:
        return "screened_out", f"its untrained KL of {screened.number('kl_nats'):.3f} nats was not among the best"
    if last.outcome.status != "completed":
        return "failed", f"rung {last.rung} {last.outcome.status}: {last_line(last.outcome.error)}"
    kl = last.outcome.number("kl_nats")
    if won:
        return "chosen", f"lowest KL, {kl:.3f} nats, after rung {last.rung}"
    told = f" (paired test: p = {last.p_worse:.2g})" if last.p_worse is not None else ""
    return "stopped", f"its KL of {kl:.3f} nats after rung {last.rung} was beaten{told}"


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


def _row(candidate: Candidate, layout: Layout, context_tokens: int, screened: Outcome | None) -> dict[str, Any]:
    shape = candidate.architecture
    return {
        "candidate": candidate.id,
        **shape.sizes(),
        "num_parameters": candidate.num_parameters,
        "num_embedding_parameters": count_embedding_parameters(shape, layout),
        "forward_flops_per_token": forward_flops_per_token(shape, layout, context_tokens),
        "kv_cache_bytes_per_token": kv_cache_bytes_per_token(shape),
        "screen_kl_nats": screened.number("kl_nats") if screened is not None else None,
        "screen_loss_nats": screened.number("loss_nats") if screened is not None else None,
    }


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
