"""How members and trials stand on each held-out text, and where the texts disagree about them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from minitron_nas.evaluation.perplexity import perplexity
from minitron_nas.reporting import numerals
from minitron_nas.reporting.members import ROLE_NAMES, SAME_FRACTION, ReportedMember
from minitron_nas.reporting.run_record import RunRecord, plain_rows


@dataclass(frozen=True, slots=True)
class TextCell:
    """A member on one text: KL to the teacher and perplexity."""

    kl_nats: float
    perplexity: float


def text_names(run: RunRecord) -> list[str]:
    """Return the held-out texts of a run, the plan's own first; none where there is no other."""
    return list(dict.fromkeys(run.texts["text"]))


def member_texts(run: RunRecord) -> dict[str, dict[str, TextCell]]:
    """Return each member's cells by member and text."""
    cells = dict[str, dict[str, TextCell]]()
    for row in plain_rows(run.texts[run.texts["look"] == "member"]):
        cells.setdefault(row["model"], {})[row["text"]] = TextCell(row["kl_nats"], perplexity(row["loss_nats"]))
    return cells


def disagreements(run: RunRecord, members: Sequence[ReportedMember]) -> list[str]:
    """Say on which texts something else is nearer to the teacher than what is nearest on all of them together.

    That is a baseline that a student beats, or a trial that the chosen one has beaten in the same rung.
    """
    cells = member_texts(run)
    told = list[str]()
    for student in members:
        if student.role == "student" and student.name in cells:
            others = [each for each in members if each.size == student.size and ROLE_NAMES[each.role] != "student"]
            told += _against_baselines(student, [each for each in others if each.name in cells], cells)
    for size in run.sizes():
        told += _among_trials(run, size)
    return told


def _against_baselines(
    student: ReportedMember, baselines: Sequence[ReportedMember], cells: Mapping[str, Mapping[str, TextCell]]
) -> Iterator[str]:
    for baseline in baselines:
        if (student.value("kl_nats") or 0.0) >= (baseline.value("kl_nats") or 0.0):
            continue
        for text, cell in cells[student.name].items():
            other = cells[baseline.name][text]
            if _is_less(other.kl_nats, cell.kl_nats):
                yield (
                    f"{student.name}: on {text} the {ROLE_NAMES[baseline.role]} is nearer to the teacher than the "
                    f"student ({numerals.nats(other.kl_nats)} against {numerals.nats(cell.kl_nats)} nats)"
                )


def _among_trials(run: RunRecord, size: str) -> Iterator[str]:
    candidates = run.candidates[(run.candidates["size"] == size) & (run.candidates["outcome"] == "chosen")]
    mine = run.texts[(run.texts["size"] == size) & run.texts["look"].str.startswith("rung ")]
    if mine.empty or len(candidates) != 1:
        return
    chosen = str(candidates["candidate"].iloc[0])
    last = max(mine["look"], key=lambda look: int(str(look).removeprefix("rung ")))
    for text, rows in mine[mine["look"] == last].groupby("text", sort=False):
        kls = pd.Series(rows["kl_nats"].to_numpy(), index=rows["model"]).dropna()
        best = str(kls.idxmin())
        if chosen in kls and _is_less(float(kls[best]), float(kls[chosen])):
            yield (
                f"{size}: on {text} {best} was nearer to the teacher after {last} than the choice "
                f"({numerals.nats(float(kls[best]))} against {numerals.nats(float(kls[chosen]))} nats)"
            )


def _is_less(one: float, other: float) -> bool:
    return one < other * (1 - SAME_FRACTION)
