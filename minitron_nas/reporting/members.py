"""The members of a family and how they compare: the rows behind the headline, the table and the card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minitron_nas.distillation.training.curve import CurvePoint, Judge, told_harm
from minitron_nas.evaluation.turns import WIDE_SPREAD
from minitron_nas.reporting import numerals
from minitron_nas.reporting.run_record import RunRecord, plain_rows
from minitron_nas.storage.lineage import Lineage

ROLE_NAMES = {
    "teacher": "teacher",
    "student": "student",
    "depth_only": "depth-only baseline",
    "random_shape": "random-shape baseline",
    "largest_shape": "largest-shape baseline",
    "random_weights": "random-weights baseline",
}
ROLES = tuple(ROLE_NAMES)
SAME_FRACTION = 0.005
"""KLs that differ by less say nothing."""

_SPEEDS = {"prefill_tokens_per_second": "prefill", "decode_tokens_per_second": "decode"}


@dataclass(frozen=True, slots=True)
class ReportedMember:
    """One model of the run beside its teacher.

    Attributes:
        values: The columns of `evaluations.parquet`, None where not measured.
        teacher: The same of the teacher, or what the plan knows of it.
        tolerance: Greatest logit difference that the student's proof allows.
        harm: What training did to it, in words, where that left it worse than it was.
    """

    name: str
    role: str
    size: str | None
    values: Mapping[str, Any]
    teacher: Mapping[str, Any]
    tolerance: float | None = None
    harm: str | None = None

    def value(self, column: str) -> Any:
        """Return a column's value, None where missing."""
        return self.values.get(column)

    def ratio(self, column: str) -> float | None:
        """Return this member's value over the teacher's, None if either is missing.

        That of a speed is the one that was measured in turns with the teacher: another hour of the machine is another
        machine.
        """
        if column in _SPEEDS:
            return self.values.get(f"{_SPEEDS[column]}_speedup")
        mine, whole = self.values.get(column), self.teacher.get(column)
        return mine / whole if mine is not None and whole else None

    def spread(self, column: str) -> float | None:
        """Return the interquartile range over the median of a speed's ratio; None of what is no speed."""
        return self.values.get(f"{_SPEEDS[column]}_spread") if column in _SPEEDS else None

    def uncertain(self, column: str) -> bool:
        """Whether a speed's spread stayed wide however often it was measured."""
        spread = self.spread(column)
        return spread is not None and spread > WIDE_SPREAD

    @property
    def title(self) -> str:
        """The member as a heading says it."""
        return self.heading if self.heading == self.name else f"{self.size} {self.heading}"

    @property
    def heading(self) -> str:
        """The member's title within its size, whose student stands above it."""
        return self.name if self.role in ("teacher", "student") else ROLE_NAMES[self.role]

    @property
    def proven(self) -> bool | None:
        """Whether the reloaded logits agree; None if that was not measured."""
        difference = self.values.get("proof_max_abs_difference")
        return None if difference is None or self.tolerance is None else bool(difference <= self.tolerance)


def list_members(run: RunRecord) -> list[ReportedMember]:
    """Return the teacher, then per size (largest first) its students and their baselines.

    A student that has no evaluation yet stands there with what its lineage says.
    """
    rows = plain_rows(run.evaluations)
    evaluated = {row["model"] for row in rows}
    rows += [_from_lineage(name, run) for name in run.lineages if name not in evaluated]
    teacher = next((row for row in rows if row["role"] == "teacher"), None)
    if teacher is None:
        teacher = {**run.teacher, "model": "teacher", "size": None, "role": "teacher"}
        rows.append(teacher)
    sizes = run.sizes()
    places = {size: place for place, size in enumerate(sizes)}
    rows.sort(key=lambda row: (places.get(row["size"], -1), ROLES.index(row["role"]), len(row["model"]), row["model"]))
    return [
        ReportedMember(
            row["model"], row["role"], row["size"], row, teacher, _tolerance(row, run.lineages), _harm(row, run)
        )
        for row in rows
    ]


def uncertain_speeds(members: list[ReportedMember]) -> list[str]:
    """Say which speeds are not to be relied on, and how far they spread."""
    return [
        f"{member.title}: {phase} speed spreads by {numerals.percent(member.spread(column))} of its median"
        for member in members
        for column, phase in _SPEEDS.items()
        if member.uncertain(column)
    ]


def about_untimed(members: Sequence[ReportedMember]) -> str:
    """Say which models were not timed, because they are larger than the device; empty where all were.

    Args:
        members: Of the run.
    """
    names = [
        member.title
        for member in members
        if member.value("loss_nats") is not None and member.value("decode_tokens_per_second") is None
    ]
    if not names:
        return ""
    return (
        f"Speed and memory of {', '.join(names)} were not measured: a model that is larger than the device takes the "
        "time in which its weights come there."
    )


def incomparable(runs: Sequence[RunRecord]) -> list[str]:
    """Say why numbers of several runs do not measure the same, if they do not.

    Args:
        runs: Of one page.
    """
    if len({run.teacher["fingerprint"] for run in runs}) > 1:
        told = ["the teachers differ, and every KL is to a run's own"]
    else:
        told = []
    if len({run.text for run in runs}) > 1:
        told.append("the texts differ, and every loss and KL is on a run's own held-out part")
    return told


def comparison(members: list[ReportedMember], name: str) -> str:
    """Say how a student stands against the baselines of its size, whoever is ahead; empty if unknown.

    Args:
        members: Of the run.
        name: The student's.
    """
    student = next((member for member in members if member.name == name), None)
    kl = student.value("kl_nats") if student else None
    others = [member for member in members if student and member.size == student.size and member.role != "student"]
    baselines = [member for member in others if member.value("kl_nats")]
    if student is None or kl is None or not baselines:
        return ""
    told = [
        _against(kl, baseline.value("kl_nats"), baseline) + _differences(student, baseline) for baseline in baselines
    ]
    return f"KL {numerals.nats(kl)} is {' and '.join(told)}"


def _against(kl: float, other: float, baseline: ReportedMember) -> str:
    change = kl / other - 1
    verdict = f"{numerals.percent(abs(change))} {'lower' if change < 0 else 'higher'} than"
    if abs(change) < SAME_FRACTION:
        verdict = "the same as"
    return f"{verdict} the {ROLE_NAMES[baseline.role]}'s {numerals.nats(other)}"


def _differences(student: ReportedMember, baseline: ReportedMember) -> str:
    """Say in what a baseline had more or less than the student; empty if it is a like-for-like match."""
    told = []
    for column, noun, slack in (("num_parameters", "parameters", 0.01), ("tokens_trained", "KD tokens", 0.0)):
        mine, other = student.value(column), baseline.value(column)
        if mine and other is not None and abs(other / mine - 1) > slack:
            told.append(f"{numerals.count(other)} {noun} against {numerals.count(mine)}")
    return f" ({', '.join(told)})" if told else ""


def _from_lineage(name: str, run: RunRecord) -> dict[str, Any]:
    lineage = run.lineages[name]
    chosen = run.candidates[(run.candidates["size"] == lineage.size) & (run.candidates["outcome"] == "chosen")]
    tokens = {"tokens_trained": lineage.tokens_trained, "exported_tokens": lineage.exported_tokens}
    known = {**lineage.architecture, **tokens}
    if len(chosen) == 1:
        known["num_parameters"] = int(chosen["num_parameters"].iloc[0])
    return {**known, "model": name, "size": lineage.size or name, "role": "student"}


def _tolerance(row: Mapping[str, Any], lineages: Mapping[str, Lineage]) -> float | None:
    if row["role"] != "student" or row["model"] not in lineages:
        return None
    proof = lineages[row["model"]].proof
    return None if proof is None else proof.tolerance


def _harm(row: Mapping[str, Any], run: RunRecord) -> str | None:
    curve = run.curves[(run.curves["model"] == row["model"]) & (run.curves["split"] == "validation")]
    exported = row.get("exported_tokens")
    if curve.empty or exported is None:
        return None
    learns_from_text = (run.plan.get("distillation") or {}).get("loss") == "lm"
    judge: Judge = "loss_nats" if learns_from_text else "kl_nats"
    points = [
        CurvePoint(each["tokens"], each["kl_nats"], each["loss_nats"], None, None)
        for each in plain_rows(curve.sort_values("tokens", kind="stable"))
    ]
    return told_harm(points[0].judged(judge), points[-1], int(exported), judge)
