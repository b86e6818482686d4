"""`write_aligned_card`: the README.md of a student that was aligned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from minitron_nas.reporting import numerals
from minitron_nas.reporting.model_card import card_template, model_class, task_of
from minitron_nas.reporting.teacher_name import display_name, hub_name
from minitron_nas.storage.atomic import write_text
from minitron_nas.storage.lineage import Lineage, read_lineage
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


def write_aligned_card(folder: Path, name: str) -> None:
    """Write `README.md` into the folder of an aligned student from its lineage and its table.

    Args:
        folder: Holds `lineage.json`, `alignment.parquet` and, if the student was asked tasks, what it got.
        name: What the model is called.

    Raises:
        RunFolderError: If the lineage cannot be read.
    """
    looks = {row["look"]: row for row in read_rows(folder, ALIGNMENT)}
    tasks = _tasks(read_rows(folder, BENCHMARKS), read_rows(folder, DIFFERENCES))
    card = render_aligned_card(read_lineage(folder), looks["before"], looks["after"], name, tasks)
    write_text(folder / "README.md", card)


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
    lineage: Lineage, before: dict[str, Any], after: dict[str, Any], name: str, tasks: dict[str, Any]
) -> str:
    """Return the model card as Markdown with YAML front matter.

    Args:
        lineage: Where the model comes from.
        before: The row of the student as it was given.
        after: The row of what was written.
        name: What the model is called.
        tasks: What it got in lm-eval's tasks: `rows` of `benchmarks.parquet`, and in each, as `against`, its difference
            to every one of `others`.
    """
    about = {**dict.fromkeys(_MAYBE), **(lineage.alignment or {})}
    method = str(about.get("method"))
    return card_template("aligned_card.md.j2").render(
        front_matter=Markup(_front_matter(lineage, method)),  # noqa: S704 - YAML's own writer quotes it
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


def _front_matter(lineage: Lineage, method: str) -> str:
    """What the hub reads; the base is the student, or whom it was pruned from where only that lies on the hub."""
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": task_of(lineage)}
    base = hub_name(lineage.source.name) or hub_name((lineage.alignment or {}).get("student_teacher"))
    if base is not None:
        fields |= {"base_model": base, "base_model_relation": "finetune"}
    data = hub_name((lineage.alignment or {}).get("data"))
    if data is not None:
        fields["datasets"] = [data]
    fields["tags"] = ["minitron", "conversational", *_TAGS[method]]
    return yaml.safe_dump(fields, sort_keys=False).rstrip()
