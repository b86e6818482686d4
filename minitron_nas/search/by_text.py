"""How far candidates are from the teacher on each of several held-out texts, as rows of `texts.parquet`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from torch import Tensor

from minitron_nas.execution.runner import Outcome
from minitron_nas.search.contest import TrialRow
from minitron_nas.search.correlations import agreement
from minitron_nas.text.held_out import means_by_text


def kls_by_text(
    screened: Mapping[str, Outcome], trials: Sequence[TrialRow], counts: Tensor, texts: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row of `texts.parquet`, without the size, for each text of each look at each candidate.

    Args:
        screened: Outcomes of the screening by candidate id.
        trials: Every rung of every trial.
        counts: (num_sequences,), tokens that count of each held-out sequence.
        texts: What takes turns in the held-out stream.
    """
    looks = [("screen", key, outcome) for key, outcome in screened.items()]
    looks += [(f"rung {trial.rung}", trial.candidate.id, trial.outcome) for trial in trials]
    return [
        {"model": model, "look": look, "text": text, "kl_nats": kl, "loss_nats": None}
        for look, model, outcome in looks
        if outcome.value is not None
        for text, kl in zip(texts, means_by_text(outcome.value["sequence_kl_nats"], counts, len(texts)), strict=True)
    ]


def text_correlations(rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row of `correlations.parquet`, without the size, for each pair of texts that candidates were screened on.

    Args:
        rows: What `kls_by_text` returned.
        texts: Their texts.
    """
    screened = [row for row in rows if row["look"] == "screen"]
    orders = {text: {row["model"]: row["kl_nats"] for row in screened if row["text"] == text} for text in texts}
    for one, other in combinations(texts, 2):
        yield {"earlier": f"screen on {one}", "later": f"screen on {other}", **agreement(orders[one], orders[other])}
