"""What one would gain and lose with the candidates next to the choice on the front."""

from dataclasses import dataclass

from minitron_nas.reporting.run_record import RunRecord

COST_NAMES = {
    "num_parameters": "parameters",
    "memory_bytes": "memory",
    "prefill_seconds": "prefill time",
    "decode_seconds": "decode time",
}
"""What the columns that a front weighs beside KL are called."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A screened candidate next to the chosen one on the front, by one of the costs.

    Attributes:
        candidate: Its shape.
        cost: What it has less or more of, by its column.
        kl_nats: Its untrained KL.
        kl_change: That over the choice's, less 1.
        cost_change: Its cost over the choice's, less 1.
    """

    candidate: str
    cost: str
    kl_nats: float
    kl_change: float
    cost_change: float


def neighbours(run: RunRecord, size: str) -> list[Neighbour]:
    """Return for each cost the points of the screened front next below and next above the choice.

    Untrained KLs are compared, as all of the front was screened and little of it trained.

    Args:
        run: The run.
        size: The label.

    Returns:
        None where nothing was chosen yet, or the choice was not screened.
    """
    screened = run.candidates[run.candidates["size"] == size].dropna(subset=["screen_kl_nats"])
    chosen = screened[screened["outcome"] == "chosen"].sort_values("screen_kl_nats", kind="stable")
    if chosen.empty:
        return []
    choice, front = chosen.iloc[0], screened[screened["on_front"] & (screened["outcome"] != "chosen")]
    found = list[Neighbour]()
    for cost in weighed(run):
        costs = front[cost].dropna()
        if choice[cost] is None or costs.empty:
            continue
        below, above = costs[costs < choice[cost]], costs[costs > choice[cost]]
        for place in [*([below.idxmax()] if len(below) else []), *([above.idxmin()] if len(above) else [])]:
            row = front.loc[place]
            kl = float(row["screen_kl_nats"])
            kl_change, cost_change = (
                kl / float(choice["screen_kl_nats"]) - 1,
                float(row[cost]) / float(choice[cost]) - 1,
            )
            found.append(Neighbour(str(row["candidate"]), cost, kl, kl_change, cost_change))
    return found


def weighed(run: RunRecord) -> list[str]:
    """Return the columns that the run's front weighs beside KL; memory where there are none."""
    search = run.plan.get("search")
    objectives = search.get("objectives") or () if isinstance(search, dict) else ()
    return [name for name in objectives if name in COST_NAMES] or ["memory_bytes"]
