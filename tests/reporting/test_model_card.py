"""The README.md of a student, read as the hub reads it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from minitron_nas.errors import RunFolderError
from minitron_nas.reporting.model_card import render_model_card, write_model_card
from minitron_nas.reporting.run_record import RunRecord, read_run
from minitron_nas.storage.lineage import Origin


@pytest.fixture(scope="module")
def run(finished_run: Path) -> RunRecord:
    return read_run(finished_run)


@pytest.fixture(scope="module")
def card(run: RunRecord) -> str:
    return render_model_card(run, "110M")


def front_matter(card: str) -> dict[str, object]:
    fields: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return fields


def test_the_front_matter_names_the_hub_teacher_and_the_relation(card: str) -> None:
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "finetune",
        "tags": ["minitron", "pruned", "distilled"],
    }


def test_a_local_teacher_is_no_base_model_and_is_called_by_its_folder(run: RunRecord) -> None:
    lineage = replace(run.lineages["110M"], teacher=Origin("/home/ada/models/mine", "f"))
    card = render_model_card(replace(run, lineages={"110M": lineage}, plan={}), "110M")
    assert "base_model" not in front_matter(card)
    assert "# mine, pruned and distilled to 110M" in card


def test_the_card_is_written_whole_into_the_student_folder(finished_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    write_model_card(folder / "students" / "94M", folder)
    written = (folder / "students" / "94M" / "README.md").read_text()
    assert written == render_model_card(read_run(folder), "94M")
    assert sorted(path.name for path in (folder / "students" / "94M").iterdir()) == ["README.md", "lineage.json"]


def test_the_shape_table_compares_teacher_and_student(card: str) -> None:
    assert "| | teacher | this model |\n|---|---:|---:|\n| `num_hidden_layers` | 30 | 28 |\n" in card
    assert "| `intermediate_size` | 1536 | 1152 |" in card


def test_the_shape_table_of_a_later_size_also_shows_what_it_was_pruned_from(run: RunRecord) -> None:
    card = render_model_card(run, "94M")
    assert "| | teacher | pruned from 110M | this model |" in card
    assert "| `num_hidden_layers` | 30 | 28 | 26 |" in card


def test_how_the_student_was_cut_is_told(card: str) -> None:
    assert "Before training channels are rotated; repair: ridge." in card


def test_kept_layers_are_told_as_ranges(card: str) -> None:
    assert "counted from 0: 0 to 19, 22 to 29." in card


def test_the_evaluation_table_has_teacher_student_and_both_baselines(card: str) -> None:
    rows = [line for line in card.splitlines() if "\N{MULTIPLICATION SIGN}" in line]
    assert [
        row.replace("\N{MULTIPLICATION SIGN}", "").replace("\N{EN DASH}", "none").replace("\N{NO-BREAK SPACE}", " ")
        for row in rows
    ] == [
        "| teacher | 134.5M | none | 0.000 | 2.902 | 18.21 | 52.4 | 1.00 |",
        "| **this model** | 108.9M | 20M | 0.214 | 3.079 | 21.74 | 63.1 | 1.20 (4 %) |",
        "| depth-only baseline | 109.7M | 20M | 0.298 | 3.149 | 23.32 | 66.0 | 1.26 (4 %) |",
        "| random-weights baseline | 108.9M | 20M | 0.541 | 3.351 | 28.53 | 63.3 | 1.21 (4 %) |",
    ]


def test_a_student_that_was_not_evaluated_says_so(run: RunRecord) -> None:
    card = render_model_card(replace(run, evaluations=run.evaluations.iloc[:0]), "110M")
    assert "Not evaluated yet." in card


def test_every_line_of_a_table_has_the_cells_of_its_heading(run: RunRecord) -> None:
    for size in ("110M", "94M"):
        for block in render_model_card(run, size).split("\n\n"):
            lines = [line.replace("\\|", "") for line in block.splitlines() if line.startswith("|")]
            assert len({line.count("|") for line in lines}) <= 1, block


def test_a_bar_in_a_setting_does_not_break_the_table(run: RunRecord) -> None:
    card = render_model_card(replace(run, plan={"distillation": {"deepspeed": "a|b\nc"}}), "110M")
    assert "| deepspeed | a\\|b c |" in card


def test_the_plan_in_the_card_is_the_plan_of_the_run(run: RunRecord, card: str) -> None:
    plan = card.rpartition("```yaml\n")[2].partition("```")[0]
    assert yaml.safe_load(plan) == run.plan


def test_loading_code_is_three_lines_of_python(card: str) -> None:
    code = card.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert len([line for line in code.splitlines() if line]) == 3


def test_a_student_without_lineage_is_refused(new_run: Path) -> None:
    with pytest.raises(RunFolderError, match=r"70M.lineage\.json is missing; distill 70M first"):
        write_model_card(new_run / "students" / "70M", new_run)


HOSTILE = (
    "<script>alert(1)</script>",
    "[load](javascript:alert(1))",
    "![](https://example.org/seen.png)",
    "```\n\n# a heading",
    "a | b\n\n---\n\n> quoted",
    "`` ` ``",
    "one\x1b[2J\u202etwo\x00",
    "**bold** _thin_ &lt; <https://example.org> \\",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_hold_markdown_or_html_start_nothing_in_the_card(run: RunRecord, card: str, name: str) -> None:
    lineages = {
        size: replace(
            lineage,
            teacher=Origin(f"/models/{name.replace('/', '')}", name),
            source=Origin(name, name),
            dtype=name,
            versions={name: name},
        )
        for size, lineage in run.lineages.items()
    }
    plan = {**run.plan, "data": name, "distillation": {**run.plan["distillation"], name: name, "deepspeed": name}}
    evaluations = run.evaluations.replace({"role": {"random-weights baseline": name}})
    hostile = render_model_card(
        replace(run, lineages=lineages, plan=plan, evaluations=evaluations, teacher={**run.teacher, "source": name}),
        "94M",
    )
    for block in (tags_of(hostile), tags_of(hostile.partition("## Shape")[2])):
        assert block - tags_of(card) <= {("code",), ("p",)}
    assert "\x1b" not in hostile
    code = hostile.partition("```python\n")[2].partition("\n```")[0]
    compile(code, "card", "exec")
    assert yaml.safe_load(fenced_yaml(hostile)) == plan


def tags_of(card: str) -> set[tuple[str, ...]]:
    """Every kind of element that a reader of Markdown makes of a card, with where links and pictures lead."""
    found: set[tuple[str, ...]] = set()
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.partition("\n---\n")[2]):
        for one in (token, *(token.children or ())):
            if one.type in ("html_block", "html_inline"):
                found.add((one.type, one.content))
            elif one.tag:
                leads = (str(one.attrs[key]) for key in ("href", "src") if key in one.attrs)
                found.add((one.tag, *leads))
    return found


def fenced_yaml(card: str) -> str:
    """Return what stands in the block of the plan, as a reader of Markdown finds it."""
    tokens = MarkdownIt("commonmark").parse(card)
    return next(token.content for token in tokens if token.type == "fence" and token.info == "yaml")


def test_tasks_are_told_with_their_difference_to_the_teacher_and_to_the_baselines(card: str) -> None:
    (task,) = [line for line in card.splitlines() if line.startswith("| piqa (v1.0)")]
    assert task == (
        "| piqa (v1.0) | acc,none | 0 | 1,838 | 0.674 | 0.650 (\N{MINUS SIGN}0.024 ± 0.012, no different) | "
        "0.641 (\N{MINUS SIGN}0.033 ± 0.012) | 0.614 (\N{MINUS SIGN}0.060 ± 0.012) |"
    )
    assert "| piqa | acc,none | +0.0093 ± 0.0041 | +0.036 ± 0.0041 |" in card
    assert "this model less 110M depth-only baseline" in card
