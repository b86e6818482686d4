"""The README.md of a student, read as the hub reads it."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt

from minitron_nas.errors import RunFolderError
from minitron_nas.reporting.model_card import render_model_card, write_model_card
from minitron_nas.reporting.run_record import RunRecord, read_run
from minitron_nas.storage.ledger import Entry
from minitron_nas.storage.lineage import Origin
from minitron_nas.storage.places import last_parts
from tests.reporting.hub_rules import faults, head_of


@pytest.fixture(scope="module")
def run(finished_run: Path) -> RunRecord:
    return read_run(finished_run)


@pytest.fixture(scope="module")
def card(run: RunRecord) -> str:
    return render_model_card(run, "110M")


def test_the_head_names_the_hub_teacher_the_relation_and_the_data(card: str) -> None:
    head = head_of(card)
    assert not faults(head)
    del head["model-index"]
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "finetune",
        "datasets": ["HuggingFaceFW/fineweb-edu"],
        "tags": ["minitron", "pruned", "distilled"],
    }


def test_the_head_holds_what_was_measured(run: RunRecord, card: str) -> None:
    (name, results) = model_index_to_eval_results(head_of(card)["model-index"])
    assert name == "SmolLM2-135M-Instruct to 110M"
    told = {(one.dataset_name, one.metric_type): one.metric_value for one in results}
    assert told[("held out of HuggingFaceFW/fineweb-edu", "loss")] == pytest.approx(3.079, abs=5e-4)
    assert told[("held out of HuggingFaceFW/fineweb-edu", "perplexity")] == pytest.approx(21.74, abs=5e-3)
    piqa = next(one for one in results if one.dataset_type == "piqa")
    assert (piqa.dataset_name, piqa.metric_type, piqa.metric_name) == (
        "piqa (lm-eval, version 1.0)", "acc", "acc,none"
    )  # fmt: skip
    assert (piqa.dataset_args, piqa.metric_value) == ({"num_few_shot": 0}, 0.650493)


def test_each_held_out_text_has_its_own_results(run: RunRecord) -> None:
    rows = [
        {"size": "110M", "model": "110M", "look": "member", "text": text, "kl_nats": 0.2, "loss_nats": loss}
        for text, loss in (("data", 2.0), ("wiki", 3.0))
    ]
    texts = pd.DataFrame(rows, columns=run.texts.columns)
    source = {"path": "/home/ada/wiki.parquet", "config": None, "split": None}
    plan = {**run.plan, "evaluation": {"texts": {"wiki": source}}, "text": {"split": "train"}}
    card = render_model_card(replace(run, texts=texts, plan=plan), "110M")
    assert not faults(head_of(card))
    _, results = model_index_to_eval_results(head_of(card)["model-index"])
    assert {(one.dataset_type, one.dataset_name, one.dataset_split, one.metric_value) for one in results[:4]} == {
        ("HuggingFaceFW/fineweb-edu", "held out of HuggingFaceFW/fineweb-edu", "train", 2.0),
        ("HuggingFaceFW/fineweb-edu", "held out of HuggingFaceFW/fineweb-edu", "train", 7.389056),
        ("wiki", "held out of wiki.parquet", None, 3.0),
        ("wiki", "held out of wiki.parquet", None, 20.085537),
    }
    assert "are over the run's 2 held-out texts (data, wiki) together" in card
    assert "by how much on the run's 2 held-out texts (data, wiki) together" in card


def test_what_is_no_number_is_no_result(run: RunRecord) -> None:
    benchmarks = run.benchmarks.assign(value=math.nan)
    evaluations = run.evaluations.assign(loss_nats=math.nan)
    assert "model-index" not in head_of(
        render_model_card(replace(run, benchmarks=benchmarks, evaluations=evaluations), "110M")
    )
    evaluations = run.evaluations.assign(loss_nats=1000.0)  # whose perplexity is infinite
    head = head_of(render_model_card(replace(run, benchmarks=benchmarks, evaluations=evaluations), "110M"))
    assert not faults(head)
    assert [one.metric_type for one in model_index_to_eval_results(head["model-index"])[1]] == ["loss"]


OWN_TERMS = {"license": "other", "license_name": "mine-1.0", "license_link": "https://example.org/terms"}


@pytest.mark.parametrize(
    ("plan", "teacher", "head", "said"),
    [
        ({}, {}, {}, "Neither the teacher's own card nor a plan says which they are: look them up"),
        ({}, {"license": "apache-2.0", "language": ["en"]}, {"license": "apache-2.0", "language": ["en"]},
         "The teacher's licence applies to it: `apache-2.0`."),
        ({"license": "gemma"}, {"license": "mit"}, {"license": "gemma"}, "applies to it: `gemma`."),
        (OWN_TERMS, {"language": "de"}, {**OWN_TERMS, "language": ["de"]},
         "applies to it: `mine-1.0`, `https://example.org/terms`."),
        ({}, {"license": ["mit"], "language": 3}, {}, "look them up"),
        ("nothing", None, {}, "look them up"),
    ],
)  # fmt: skip
def test_the_licence_is_the_plans_word_then_the_teachers_and_never_a_guess(
    run: RunRecord, plan: object, teacher: object, head: dict[str, object], said: str
) -> None:
    known = replace(run, plan={**run.plan, "card": plan}, teacher={**run.teacher, "card": teacher})
    card = render_model_card(known, "110M")
    found = head_of(card)
    assert not faults(found)
    assert {key: found[key] for key in found if key.startswith("licen") or key == "language"} == head
    assert said in card.partition("## Licence")[2].partition("##")[0]


def test_of_a_blend_the_texts_that_lie_on_the_hub_are_data_sets(run: RunRecord) -> None:
    paths = ("/home/ada/mine.parquet", "owner/texts", "embedded", "dataset:0af3", "owner/texts", "owner/code")
    data = [{"path": path, "weight": 0.5} for path in paths]
    head = head_of(render_model_card(replace(run, plan={**run.plan, "data": data}), "110M"))
    assert not faults(head)
    assert head["datasets"] == ["owner/texts", "owner/code"]
    assert "datasets" not in head_of(render_model_card(replace(run, plan={**run.plan, "data": "embedded"}), "110M"))


def test_the_hubs_rules_notice_what_it_refuses(card: str) -> None:
    head = head_of(card)
    wrong: dict[str, object] = {
        "license": "Apache 2.0",
        "license_name": "x",
        "language": ["zh-CN"],
        "datasets": ["a b"],
    }
    assert len(faults({**head, **wrong})) == 4
    assert faults({**head, "tags": None}) == ["empty tags"]
    assert faults({key: value for key, value in head.items() if key != "base_model"})
    head["model-index"][0]["results"][0]["metrics"][0]["value"] = math.nan
    assert faults(head)


def test_what_it_cost_is_told_as_far_as_the_run_knows_it(run: RunRecord) -> None:
    entries = [Entry(f"110M {kind}", "of inputs", None, 1800.0) for kind in ("screen", "tournament", "rate", "distil")]
    known = replace(run, stages=tuple(entries), devices={"name": "cuda", "number": 4})
    cost = cost_of(render_model_card(known, "110M"))
    assert "| search of this size | 11.5M | 7.7e+15 | 6.000 |" in cost
    assert "| training of this model | 20M | 1.3e+16 | 2.000 |" in cost
    assert "| all of the run so far: teacher, all sizes, baselines | 31.5M | 2.1e+16 | 8.000 |" in cost
    assert "all 4 of the run's devices (cuda)" in cost
    priced = replace(known, plan={**run.plan, "runner": {"price_per_device_hour": 2.5}})
    cost = cost_of(render_model_card(priced, "110M"))
    assert "| device-hours | money |\n|---|---:|---:|---:|---:|\n" in cost
    assert "| 2.000 | 5.000 |" in cost


def test_where_the_ledger_is_gone_the_tokens_are_still_told(run: RunRecord) -> None:
    cost = cost_of(render_model_card(replace(run, stages=()), "110M"))
    assert "| training of this model | 20M | 1.3e+16 | unknown |" in cost
    assert "How long it took is not known." in cost
    assert "all of the run" not in cost


def test_no_place_of_the_machine_is_in_the_card(run: RunRecord) -> None:
    plan = {
        **run.plan,
        "teacher": "/home/ada/models/mine",
        "data": [{"path": "/home/ada/texts/a.parquet", "weight": 1.0}],
        "evaluation": {"texts": {"wiki": {"path": "~/wiki.txt"}}, "include_path": "s3://ada/tasks"},
        "distillation": {**run.plan["distillation"], "deepspeed": "C:\\Users\\ada\\zero.json"},
        "runner": {"address": "ada.internal:6379"},
        "card": OWN_TERMS,
    }
    lineages = {name: replace(one, teacher=Origin("/home/ada/models/mine", "f")) for name, one in run.lineages.items()}
    card = render_model_card(replace(run, plan=plan, lineages=lineages), "110M")
    assert "ada" not in card
    kept = yaml.safe_load(fenced_yaml(card))
    assert "runner" not in kept
    assert kept["data"] == [{"path": "a.parquet", "weight": 1.0}]
    assert kept["card"] == OWN_TERMS
    assert "Of each path only the last part stands here" in card


def test_a_local_teacher_is_no_base_model_and_is_called_by_its_folder(run: RunRecord) -> None:
    lineage = replace(run.lineages["110M"], teacher=Origin("/home/ada/models/mine", "f"))
    card = render_model_card(replace(run, lineages={"110M": lineage}, plan={}), "110M")
    assert "base_model" not in head_of(card)
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


def test_what_it_was_made_with_is_a_list_of_words(card: str) -> None:
    assert "Made with minitron-nas 0.1.0, torch 2.13.0, transformers 5.20.1." in card


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
    plan["evaluation"] = {"texts": {name: {"path": name}}}
    evaluations = run.evaluations.replace({"role": {"random-weights baseline": name}})
    columns = ("task", "metric", "task_version")
    rows = [
        {"size": "94M", "model": "94M", "look": "member", "text": text, "kl_nats": 0.2, "loss_nats": 2.0}
        for text in ("data", name)
    ]
    hostile = render_model_card(
        replace(
            run,
            lineages=lineages,
            plan=plan,
            evaluations=evaluations,
            texts=pd.DataFrame(rows, columns=run.texts.columns),
            benchmarks=run.benchmarks.assign(**dict.fromkeys(columns, name)),
            teacher={
                **run.teacher,
                "source": name,
                "card": dict.fromkeys(("license", "license_name", "language"), name),
            },
            devices={"name": name, "number": 1},
        ),
        "94M",
    )
    head = head_of(hostile)
    assert not faults(head)
    assert not {"license", "language", "datasets"} & head.keys()
    _, results = model_index_to_eval_results(head["model-index"])
    assert len(results) == 4 + len(run.benchmarks[run.benchmarks["model"] == "94M"])
    written = last_parts(plan)
    for block in (tags_of(hostile), tags_of(hostile.partition("## Shape")[2])):
        assert block - tags_of(card) <= {("code",), ("p",)}
    assert "\x1b" not in hostile
    code = hostile.partition("```python\n")[2].partition("\n```")[0]
    compile(code, "card", "exec")
    assert yaml.safe_load(fenced_yaml(hostile)) == written


def cost_of(card: str) -> str:
    return card.partition("## What it cost")[2].partition("##")[0].replace("\N{EN DASH}", "unknown")


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
