"""`write_aligned_card`: the README.md of a student that was aligned."""

from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from minitron_nas.reporting import numerals
from minitron_nas.reporting.model_card import card_template, model_class, task_of
from minitron_nas.reporting.teacher_name import display_name, hub_name
from minitron_nas.storage.atomic import write_text
from minitron_nas.storage.lineage import Lineage, read_lineage
from minitron_nas.storage.schemas import ALIGNMENT
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
        folder: Holds `lineage.json` and `alignment.parquet`.
        name: What the model is called.

    Raises:
        RunFolderError: If the lineage cannot be read.
    """
    rows = {row["look"]: row for row in read_rows(folder, ALIGNMENT)}
    write_text(folder / "README.md", render_aligned_card(read_lineage(folder), rows["before"], rows["after"], name))


def render_aligned_card(lineage: Lineage, before: dict[str, Any], after: dict[str, Any], name: str) -> str:
    """Return the model card as Markdown with YAML front matter.

    Args:
        lineage: Where the model comes from.
        before: The row of the student as it was given.
        after: The row of what was written.
        name: What the model is called.
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
