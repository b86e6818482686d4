"""`write_aligned_card`: the README.md of a student that was aligned."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from minitron_nas.reporting import numerals
from minitron_nas.reporting.metadata import hub_datasets, metadata, task_results, text_results
from minitron_nas.reporting.model_card import card_template, model_class, told_licence, told_versions
from minitron_nas.reporting.teacher_name import display_name, hub_name
from minitron_nas.reporting.terms import CardSettings
from minitron_nas.storage.atomic import write_text
from minitron_nas.storage.front_matter import CARD
from minitron_nas.storage.lineage import Lineage, read_lineage
from minitron_nas.storage.places import last_parts
from minitron_nas.storage.schemas import ALIGNMENT, BENCHMARKS, DIFFERENCES
from minitron_nas.storage.tables import read_rows

_METHODS = {
    "sft": "supervised fine-tuning: next-token loss on what assistants write",
    "dpo": "direct preference optimization ([arXiv 2305.18290](https://arxiv.org/abs/2305.18290))",
    "kd": "distillation from an instruct model: KL on what assistants write",
}
_MAYBE = ("beta", "harm", "template_from", "validation")
"""What a lineage tells of some alignments only."""

_TAGS = {"sft": ["sft"], "dpo": ["dpo"], "kd": ["distilled"]}


def write_aligned_card(folder: Path, name: str, terms: CardSettings) -> None:
    """Write `README.md` into the folder of an aligned student from its lineage and its table.

    Args:
        folder: Holds `lineage.json`, `alignment.parquet` and, if the student was asked tasks, what it got.
        name: What the model is called.
        terms: Licence and languages, as the student's card says them.

    Raises:
        RunFolderError: If the lineage cannot be read.
    """
    looks = {row["look"]: row for row in read_rows(folder, ALIGNMENT)}
    tasks = _tasks(read_rows(folder, BENCHMARKS), read_rows(folder, DIFFERENCES))
    card = render_aligned_card(read_lineage(folder), looks["before"], looks["after"], name, tasks, terms)
    write_text(folder / CARD, card)


def _tasks(rows: Sequence[dict[str, Any]], differences: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what a student got in tasks, and the names of the `others` that it is held against in each row."""
    others = list(dict.fromkeys(row["other"] for row in differences))
    found = {(row["task"], row["metric"], row["other"]): row for row in differences}
    return {
        "others": others,
        "rows": [
            {**row, "against": [found.get((row["task"], row["metric"], name)) for name in others]} for row in rows
        ],
    }


def render_aligned_card(
    lineage: Lineage,
    before: dict[str, Any],
    after: dict[str, Any],
    name: str,
    tasks: dict[str, Any],
    terms: CardSettings,
) -> str:
    """Return the model card as Markdown with YAML front matter.

    Args:
        lineage: Where the model comes from.
        before: The row of the student as it was given.
        after: The row of what was written.
        name: What the model is called.
        tasks: What it got in lm-eval's tasks: `rows` of `benchmarks.parquet`, and in each, as `against`, its difference
            to every one of `others`.
        terms: Licence and languages.
    """
    about = {**dict.fromkeys(_MAYBE), **last_parts(lineage.alignment or {})}
    method = str(about.get("method"))
    return card_template("aligned_card.md.j2").render(
        front_matter=Markup(_front_matter(name, lineage, after, tasks, terms)),  # noqa: S704 - YAML's own writer quotes it
        licence=told_licence(terms, "student"),
        versions=told_versions(lineage),
        name=name,
        student_name=display_name(lineage.source.name),
        teacher_name=display_name(lineage.teacher.name) if lineage.teacher.name else None,
        lineage=lineage,
        model_class=model_class(lineage),
        about=about,
        method=Markup(_METHODS[method]),  # noqa: S704 - ours
        before=before,
        after=after,
        tasks=tasks,
        numerals=numerals,
    )


def _front_matter(
    name: str, lineage: Lineage, after: Mapping[str, Any], tasks: Mapping[str, Any], terms: CardSettings
) -> str:
    """What the hub reads; the base is the student, or whom it was pruned from where only that lies on the hub."""
    about = lineage.alignment or {}
    base, data = hub_name(lineage.source.name) or hub_name(about.get("student_teacher")), about.get("data")
    text = text_results("conversations", {"path": data}, after["loss_nats"])
    results, tags = [*text, *task_results(tasks["rows"])], _TAGS[str(about.get("method"))]
    return metadata(name, lineage, terms, base, hub_datasets(data), ("minitron", "conversational", *tags), results)
