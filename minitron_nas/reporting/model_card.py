"""`write_model_card`: the README.md of a student folder."""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from minitron_nas.architecture.spec import EXPERT_FIELDS, MAMBA_FIELDS, SHAPE_FIELDS
from minitron_nas.errors import RunFolderError, printable
from minitron_nas.reporting import numerals
from minitron_nas.reporting.cost import member_costs
from minitron_nas.reporting.members import about_untimed, comparison, list_members
from minitron_nas.reporting.metadata import hub_datasets, metadata, run_results, terms_of
from minitron_nas.reporting.run_record import RunRecord, read_run
from minitron_nas.reporting.sections import against_others, asked_of, benchmark_table, words
from minitron_nas.reporting.teacher_name import display_name, hub_name
from minitron_nas.reporting.terms import CardSettings
from minitron_nas.reporting.texts import text_names
from minitron_nas.resources import resource
from minitron_nas.storage.atomic import write_text
from minitron_nas.storage.front_matter import CARD
from minitron_nas.storage.lineage import Lineage
from minitron_nas.storage.places import last_parts

_MARKS = re.compile(r"[\\`*_\[\]<>|~&#]")
"""What Markdown, or the HTML in it, may take for more than a letter."""

_SPACES = re.compile(r"[ \t\r\n]+")

_FIXED_FIELDS = ("model_type", "head_dim", "vocab_size", "tie_word_embeddings")


def write_model_card(student_folder: Path, run_folder: Path) -> None:
    """Write `README.md` into a student's folder from its lineage and the run's tables.

    Raises:
        RunFolderError: If the run folder has no plan or the student no `lineage.json`.
    """
    run = read_run(run_folder)
    size = student_folder.name
    if size not in run.lineages:
        raise RunFolderError(f"{run_folder / 'students' / size / 'lineage.json'} is missing; distill {size} first")
    write_text(student_folder / CARD, render_model_card(run, size))


def render_model_card(run: RunRecord, size: str) -> str:
    """Return the model card of one student as Markdown with YAML front matter."""
    return card_template("model_card.md.j2").render(_content(run, size))


@functools.cache
def card_template(name: str) -> jinja2.Template:
    """Return the template of a card, which takes longer to compile than to fill.

    Args:
        name: Of its file in `reports/`.
    """
    template = resource("reports", name)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=False,  # noqa: S701 - Markdown, which `finalize` escapes
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"code": _code, "fenced": _fenced, "python": _python, "words": words}
    return environment.get_template(template.name)


def _content(run: RunRecord, size: str) -> dict[str, Any]:
    lineage = run.lineages[size]
    members = list_members(run)
    source = lineage.teacher.name or run.teacher["source"]
    base_model, text_only = hub_name(source), lineage.num_tower_parameters is None
    terms, plan, costs = terms_of(run), _published(run.plan), member_costs(run, size)
    student = next(member for member in members if member.name == size)
    compared = [member for member in members if member.role == "teacher" or member.size == (lineage.size or size)]
    return {
        "front_matter": Markup(_front_matter(run, size, base_model, terms)),  # noqa: S704 - YAML's own writer quotes it
        "licence": told_licence(terms, "teacher"),
        "text_only": text_only,
        "model_class": model_class(lineage),
        "reader_class": "AutoTokenizer" if text_only else "AutoProcessor",
        "size": size,
        "asked_of": asked_of(run, lineage.size or size),
        "base_model": base_model,
        "teacher_name": display_name(source),
        "lineage": lineage,
        "source_name": "the teacher" if lineage.source.name in ("teacher", None) else lineage.source.name,
        "kd_teacher": run.plan.get("kd_teacher", "first"),
        **_shape(run, size),
        "settings": _settings(plan.get("distillation") or {}),
        "student": student,
        "compared": compared,
        "untimed": about_untimed(compared),
        "evaluated": student.value("loss_nats") is not None,
        "comparison": comparison(members, size),
        "benchmarks": benchmark_table(run, [member.name for member in compared]),
        "against": against_others(run, size),
        "titles": {member.name: member.title for member in compared},
        "texts": _texts(run),
        "costs": costs,
        "priced": any(cost.money is not None for cost in costs.values()),
        "devices": run.devices,
        "versions": told_versions(lineage),
        "plan": yaml.safe_dump(plan, sort_keys=False, allow_unicode=True).rstrip(),
        "numerals": numerals,
    }


def model_class(lineage: Lineage) -> str:
    """Return the class of transformers through which a student loads.

    Args:
        lineage: The student's.
    """
    return "AutoModelForCausalLM" if lineage.num_tower_parameters is None else "AutoModelForImageTextToText"


def told_versions(lineage: Lineage) -> str:
    """Return the packages that a model was made with.

    Args:
        lineage: The model's.
    """
    return ", ".join(f"{package} {version}" for package, version in lineage.versions.items()) or "unknown versions"


def told_licence(terms: CardSettings, whose: str) -> Markup:
    """Say under which licence a model stands, or that nobody has said it.

    Args:
        terms: What is known.
        whose: Whose licence it is.
    """
    if terms.license is None:
        return Markup(  # noqa: S704 - ours
            f"The {whose}'s licence and terms of use apply to it. Neither the {whose}'s own card nor a plan says which "
            "they are: look them up before you use this model or pass it on."
        )
    link = "" if terms.license_link is None else f", {_code(terms.license_link)}"
    return Markup(f"The {whose}'s licence applies to it: {_code(terms.license_name or terms.license)}{link}.")  # noqa: S704 - quoted


def _front_matter(run: RunRecord, size: str, base_model: str | None, terms: CardSettings) -> str:
    teacher = display_name(run.lineages[size].teacher.name or run.teacher["source"])
    return metadata(
        f"{teacher.rpartition('/')[2]} to {size}",
        run.lineages[size],
        terms,
        base_model,
        hub_datasets(run.plan.get("data")),
        ("minitron", "pruned", "distilled"),
        run_results(run, size),
    )


def _published(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan as it is told to others: without where it ran, and of paths the last part alone."""
    told = {name: value for name, value in plan.items() if name != "runner"}
    return {name: value if name == "card" else last_parts(value) for name, value in told.items()}


def _texts(run: RunRecord) -> str:
    """Say what losses and KLs were measured on."""
    if not (names := text_names(run)):
        return "the run's held-out text"
    return f"the run's {len(names)} held-out texts ({', '.join(names)}) together"


def _shape(run: RunRecord, size: str) -> dict[str, Any]:
    """Return the columns and rows of the shape table: teacher, the model pruned from, this model."""
    lineage = run.lineages[size]
    first = next((one for one in run.lineages.values() if one.source.name == "teacher"), None)
    columns = {"pruned from " + str(lineage.source.name): lineage.source_architecture}
    if first is not None:
        columns = {"teacher": first.source_architecture, **columns}
    if lineage.source.name in ("teacher", None):
        columns = {"teacher": lineage.source_architecture}
    columns["this model"] = lineage.architecture
    shape = lineage.architecture
    names = [
        name
        for name in (*SHAPE_FIELDS, *_FIXED_FIELDS)
        if name in shape and (shape[name] or name not in (*EXPERT_FIELDS, *MAMBA_FIELDS))
    ]
    rows = [(name, [column.get(name, numerals.MISSING) for column in columns.values()]) for name in names]
    return {"shape_columns": list(columns), "shape": rows}


def _settings(distillation: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the plan's settings of distillation that the lineage does not tell."""
    told = ("tokens", "learning_rate")
    return [(name, value) for name, value in distillation.items() if name not in told and value is not None]


def _escaped(value: object) -> str:
    """Return a value that stands in a line or a cell of Markdown as it is, and starts nothing."""
    if isinstance(value, Markup):
        return value
    return _MARKS.sub(r"\\\g<0>", _line(value))


def _code(value: object) -> Markup:
    """Return a value as inline code: between more backticks than it holds in a row."""
    text = _line(value).replace("|", "\\|") or " "
    ticks = "`" * (_longest_ticks(text) + 1)
    space = " " if "`" in (text[0], text[-1]) else ""
    return Markup(f"{ticks}{space}{text}{space}{ticks}")  # noqa: S704 - nothing in it can end the code


def _fenced(text: str, language: str) -> Markup:
    """Return lines as a block of code, between fences that are longer than any in it."""
    fence = "`" * max(3, _longest_ticks(text) + 1)
    return Markup(f"{fence}{language}\n{text}\n{fence}")  # noqa: S704 - nothing in it can end the block


def _python(value: str) -> Markup:
    """Return words as a string of Python, for the block that shows how to load a model."""
    return Markup(json.dumps(value).replace("`", "\\x60"))  # noqa: S704 - quoted


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _line(value: object) -> str:
    return printable(_SPACES.sub(" ", str(value)).strip())
