"""A gate for models: the same model passes however it is stored, a damaged one does not."""

import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from minitron_nas.errors import CheckpointError, PlanError, RunFolderError
from minitron_nas.evaluation import lm_eval
from minitron_nas.evaluation.paired import TaskResults
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.evaluation.speed import Speed
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.steps import model_checks as module
from minitron_nas.pipeline.steps.check import Check
from minitron_nas.pipeline.steps.compare import Comparison, compare
from minitron_nas.pipeline.steps.limits import CompareLimits, read_limits
from minitron_nas.pipeline.steps.task_checks import checks_of_tasks
from minitron_nas.storage.run_folder import new_folder
from minitron_nas.storage.schemas import BENCHMARKS, COMPARISON, DOCUMENTS
from minitron_nas.storage.tables import write_rows

Damage = Callable[[Path], None]
TASKS = Path(__file__).parents[2] / "evaluation" / "tasks"


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    file = tmp_path_factory.mktemp("text") / "held_out.txt"
    file.write_text(json.loads(text_file.read_text(encoding="utf-8").splitlines()[0])["text"][:3000], encoding="utf-8")
    return file


@pytest.fixture
def beside(trained_teacher: Path, held_out: Path, tmp_path: Path) -> Callable[..., Comparison]:
    """Compare the teacher with a copy to which something was done."""

    def call(change: Damage, limits: CompareLimits | None = None, **more: Any) -> Comparison:
        shutil.copytree(trained_teacher, tmp_path / "copy")
        change(tmp_path / "copy")
        return compare(trained_teacher, tmp_path / "copy", held_out, limits, display=Quiet(), **more)

    return call


def rewritten(folder: Path, **options: Any) -> None:
    """Store a model again."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=options.pop("dtype", torch.float32))
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    model.save_pretrained(folder, **options)


def in_half(folder: Path) -> None:
    rewritten(folder, dtype=torch.bfloat16)


def in_shards(folder: Path) -> None:
    rewritten(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1


def with_layers_swapped(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    swap = {1: 3, 3: 1}

    def renamed(name: str) -> str:
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            parts[2] = str(swap.get(int(parts[2]), int(parts[2])))
        return ".".join(parts)

    save_file({renamed(name): tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def with_another_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }} and no more")


def with_a_token_renamed(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    token = next(token for token, number in vocabulary.items() if number == 100)
    vocabulary[f"{token}q"] = vocabulary.pop(token)
    content["model"]["merges"] = [
        merge for merge in content["model"].get("merges", []) if "".join(merge).replace(" ", "") != token
    ]
    file.write_text(json.dumps(content), encoding="utf-8")


def with_half_of_the_merges_in_small_letters(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["merges"] = content["model"]["merges"][::2]
    content["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(content), encoding="utf-8")


def with_another_end(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps({**content, "eos_token_id": 100}))


def with_more_rows(folder: Path) -> None:
    """A vocabulary that is padded, as many are, so that its rows divide well."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    embedding = model.get_input_embeddings().weight
    model.resize_token_embeddings(384, mean_resizing=False)
    for rows in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        rows.data[len(embedding) :] = 0
    model.save_pretrained(folder)


def with_rows_cut(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(270)
    model.save_pretrained(folder)


def with_no_number(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [in_half, in_shards, lambda folder: None],
    ids=["bfloat16", "shards", "as it is"],
)
def test_the_same_model_passes_however_it_is_stored(beside: Callable[..., Comparison], change: Damage) -> None:
    found = beside(change)
    assert found.passes, found.to_markdown()
    assert [check.measure for check in found.checks] == [
        *("tokenizer", "vocabulary", "text_as_tokens", "tokens_as_text"),
        *("chat_template", "special_tokens", "generation", "context"),
        *("parameters_ratio", "kl_nats", "loss_increase_nats", "agreement_share"),
        *("written_tokens_ratio", "ended_drop"),
    ]


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        (with_layers_swapped, {"kl_nats", "loss_increase_nats"}),
        (with_another_template, {"chat_template"}),
        (with_half_of_the_merges_in_small_letters, {"text_as_tokens"}),
        (with_another_end, {"special_tokens"}),
        (with_a_token_renamed, {"tokenizer", "kl_nats", "loss_increase_nats", "agreement_share"}),
    ],
)
def test_a_damaged_model_fails_by_name(beside: Callable[..., Comparison], change: Damage, failing: set[str]) -> None:
    found = beside(change)
    assert not found.passes
    assert {check.measure for check in found.checks if not check.passes} >= failing


def test_a_padded_vocabulary_is_compared_over_the_ids_that_both_have(beside: Callable[..., Comparison]) -> None:
    """What rows of padding take of the probability is a rise of the loss; what the other ids have is the same."""
    found = beside(with_more_rows, CompareLimits(kl_nats=1e-6, loss_increase_nats=None, agreement_share=1.0))
    assert found.passes, found.to_markdown()
    (check,) = (check for check in found.checks if check.measure == "vocabulary")
    assert (check.base, check.other) == (320, 384)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_rows_cut, r"no intact model: .*copy: the tokenizer has 320 ordinary ids, but vocab_size=270; use the"),
        (with_no_number, r"no intact model: .*copy: tensor 'model\.norm\.weight' holds NaN"),
    ],
)
def test_what_is_no_intact_model_fails_and_is_no_error(
    beside: Callable[..., Comparison], tmp_path: Path, change: Damage, told: str
) -> None:
    found = beside(change, out=tmp_path / "out")
    (check,) = found.checks
    assert (check.measure, check.passes) == ("checkpoint", False)
    assert re.match(told, check.told)
    assert pd.read_parquet(tmp_path / "out" / "comparison.parquet")["passes"].tolist() == [False]


def test_a_first_model_that_is_not_intact_is_an_error(trained_teacher: Path, held_out: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_teacher, tmp_path / "copy")
    with_rows_cut(tmp_path / "copy")
    with pytest.raises(CheckpointError, match="the tokenizer has 320 ordinary ids, but vocab_size=270"):
        compare(tmp_path / "copy", trained_teacher, held_out, display=Quiet())


def test_a_model_that_no_longer_ends_a_text_fails(trained_teacher: Path, held_out: Path, tmp_path: Path) -> None:
    """The first model ends a text with any token, the second with one that it never writes."""
    for name, ends in (("base", list(range(320))), ("other", [0])):
        shutil.copytree(trained_teacher, tmp_path / name)
        (tmp_path / name / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    limits = CompareLimits(differing_settings=None, ended_drop=0.5)
    found = compare(tmp_path / "base", tmp_path / "other", held_out, limits, display=Quiet())
    (check,) = (check for check in found.checks if not check.passes)
    assert (check.measure, check.value, check.base, check.other) == ("ended_drop", 1.0, 1.0, 0.0)


def test_settings_may_differ_where_no_limit_is_on_them(beside: Callable[..., Comparison]) -> None:
    assert beside(with_another_template, CompareLimits(differing_settings=None)).passes


def test_a_compressed_model_is_held_to_the_limits_that_it_was_given(
    finished: Path, trained_teacher: Path, held_out: Path
) -> None:
    student = finished / "students" / "90k"
    strict = compare(trained_teacher, student, held_out, CompareLimits(kl_nats=0.001), display=Quiet())
    by_name = {check.measure: check for check in strict.checks}
    kl, parameters = by_name["kl_nats"].value, by_name["parameters_ratio"].value
    assert not strict.passes
    assert kl is not None
    assert parameters is not None
    assert kl > 0.001
    assert parameters < 1
    own = CompareLimits(kl_nats=kl, loss_increase_nats=None, agreement_share=0, parameters_ratio=parameters)
    assert compare(trained_teacher, student, held_out, own, display=Quiet()).passes
    too_large = own.model_copy(update={"parameters_ratio": parameters - 0.01})
    assert not compare(trained_teacher, student, held_out, too_large, display=Quiet()).passes


def test_speed_is_measured_in_turns_only_where_a_limit_asks_for_it(
    beside: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch, trained_teacher: Path
) -> None:
    timed: list[Path | None] = []

    def measure(path: Path, settings: EvaluationSettings, teacher: Path | None = None) -> Speed:
        timed.append(teacher)
        return Speed(100.0, 10.0, 2**20, 1.0, 1.0 if teacher is None else 0.8, 0.02, 0.02)

    monkeypatch.setattr(module, "measure_speed", measure)
    found = beside(lambda folder: None, CompareLimits(decode_speedup=0.9))
    assert timed == [None, trained_teacher]
    assert [check.measure for check in found.checks if not check.passes] == ["decode_speedup"]
    assert not CompareLimits().asks_for_speed


def test_models_that_are_larger_than_the_device_are_told_of_and_not_timed(
    trained_teacher: Path, held_out: Path, little_memory: None, told: Any
) -> None:
    found = compare(trained_teacher, trained_teacher, held_out, CompareLimits(memory_ratio=1.1), display=told)
    assert [note.partition(":")[0] for note in told.notes if "larger than the memory" in note] == ["base", "other"]
    (check,) = (check for check in found.checks if not check.passes)
    assert (check.measure, check.told) == ("memory_ratio", "not measured, at most 1.1")
    assert {check.measure for check in found.checks if check.value is None} == {
        *("written_tokens_ratio", "ended_drop", "prefill_speedup", "decode_speedup", "memory_ratio")
    }


def test_the_table_and_the_page_say_what_failed(trained_teacher: Path, held_out: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_teacher, tmp_path / "a|b")
    with_another_template(tmp_path / "a|b")
    compare(trained_teacher, tmp_path / "a|b", held_out, out=tmp_path / "out", display=Quiet())
    frame = pd.read_parquet(tmp_path / "out" / "comparison.parquet")
    assert list(frame.columns) == [column.name for column in COMPARISON.columns]
    assert frame[~frame["passes"]]["measure"].tolist() == ["chat_template"]
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "**1 of" in page
    assert "a\\|b" in page
    with pytest.raises(RunFolderError, match="out"):
        compare(trained_teacher, trained_teacher, held_out, out=tmp_path / "out", display=Quiet())


def test_two_that_compare_into_one_folder_are_told_apart(finished: Path, tmp_path: Path) -> None:
    with (
        new_folder(tmp_path / "beside"),
        pytest.raises(RunFolderError, match=r"beside is in use by process \d+ .*; wait for it or choose another --out"),
    ):
        compare(finished, finished, out=tmp_path / "beside")
    assert compare(finished, finished, out=tmp_path / "beside").passes
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["beside", "comparison.md", "comparison.parquet"]


def test_runs_are_compared_member_by_member(finished: Path, tmp_path: Path) -> None:
    same = compare(finished, finished)
    assert same.passes
    assert {check.model for check in same.checks} == {"teacher", "90k"}
    shutil.copytree(finished, tmp_path / "later")
    file = tmp_path / "later" / "evaluations.parquet"
    frame = pd.read_parquet(file)
    worse = frame.assign(kl_nats=frame["kl_nats"] + 0.1)
    worse.to_parquet(file)
    found = compare(finished, tmp_path / "later")
    assert {(check.model, check.measure) for check in found.checks if not check.passes} == {
        ("teacher", "kl_nats rises by"),
        ("90k", "kl_nats rises by"),
    }
    frame[frame["model"] == "teacher"].to_parquet(file)
    assert [check.told for check in compare(finished, tmp_path / "later").checks if not check.passes] == [
        f"{tmp_path / 'later'} has no such member, or not yet"
    ]


def test_speed_and_generation_of_a_run_are_held_against_those_of_the_first(finished: Path, tmp_path: Path) -> None:
    """A student as fast as its teacher times 1.2 in one run and times 0.9 in the next is 0.75 times as fast."""
    for name, speedup, agreement, ended in (("first", 1.2, 8.0, 0.75), ("second", 0.9, 2.0, 0.25)):
        file = shutil.copytree(finished, tmp_path / name) / "evaluations.parquet"
        frame = pd.read_parquet(file)
        student = frame["model"] == "90k"
        frame.loc[student, ["prefill_speedup", "agreement_tokens", "ended_share"]] = speedup, agreement, ended
        frame.to_parquet(file)
    limits = CompareLimits(prefill_speedup=0.8, agreement_share=0.3, ended_drop=0.4)
    found = compare(tmp_path / "first", tmp_path / "second", limits=limits)
    assert {(check.model, check.measure): check.value for check in found.checks if not check.passes} == {
        ("90k", "prefill_speedup over"): pytest.approx(0.75),
        ("90k", "agreement_tokens over"): 0.25,
        ("90k", "ended_share falls by"): 0.5,
    }
    itself = CompareLimits(prefill_speedup=1.0, decode_speedup=1.0, agreement_share=1.0)
    assert compare(tmp_path / "first", tmp_path / "first", limits=itself).passes
    (only,) = (
        check
        for check in compare(tmp_path / "second", tmp_path / "first").checks
        if "agree" in check.measure and check.model == "90k"
    )
    assert only.told == "4, at least 0.5"


def test_a_member_that_followed_its_teacher_for_no_token_has_none_to_keep_to(finished: Path, tmp_path: Path) -> None:
    file = shutil.copytree(finished, tmp_path / "run") / "evaluations.parquet"
    pd.read_parquet(file).assign(agreement_tokens=0.0).to_parquet(file)
    found = compare(tmp_path / "run", finished)
    assert found.passes
    assert {check.told for check in found.checks if "agreement" in check.measure} == {"the first has none to keep to"}


def test_what_a_run_has_not_measured_keeps_to_no_limit(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "later")
    file = tmp_path / "later" / "evaluations.parquet"
    frame = pd.read_parquet(file)
    frame.assign(kl_nats=float("nan"), peak_memory_bytes=None).to_parquet(file)
    found = compare(finished, tmp_path / "later", limits=CompareLimits(memory_ratio=1.0))
    assert {check.measure for check in found.checks if not check.passes} == {
        "kl_nats rises by",
        "peak_memory_bytes over",
    }
    assert "not measured" in found.to_markdown()


def test_runs_are_held_against_nothing_that_was_not_measured(finished: Path, held_out: Path, tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    shutil.copy(finished / "plan.yaml", tmp_path / "begun")
    with pytest.raises(RunFolderError, match=r"begun has evaluated no student yet, so none is held against it"):
        compare(tmp_path / "begun", finished)
    with pytest.raises(PlanError, match="two runs are compared by what they have measured; leave --text out"):
        compare(finished, finished, held_out)


def test_a_limit_that_is_named_twice_is_refused() -> None:
    with pytest.raises(PlanError, match="--limit names kl_nats twice; keep one"):
        read_limits(None, ["kl_nats=0.6", "loss_increase_nats=0.1", "kl_nats=null"])


def test_a_number_that_is_none_keeps_to_no_limit() -> None:
    assert not Check("kl_nats", float("nan"), 1.0).passes
    assert not Check("kl_nats", None, 1.0).passes
    assert Check("kl_nats", None).passes
    assert not Check("decode_speedup", float("nan"), 1.0, "at least").passes


def test_limits_come_from_a_file_and_from_words(tmp_path: Path) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text("{kl_nats: 0.6, decode_speedup: 1.2}")
    found = read_limits(file, ["kl_nats=0.7", "agreement_share=null"])
    assert (found.kl_nats, found.decode_speedup, found.agreement_share) == (0.7, 1.2, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["kl"], r"--limit 'kl' is not of the form name=value, such as kl_nats=0\.6"),
        (["kl_nat=1"], r"limits: unknown key 'kl_nat'; did you mean 'kl_nats'\?"),
        (["kl_nats=much"], r"limits: kl_nats: "),
        (["kl_nats=["], r"--limit 'kl_nats=\[': the value is not YAML: "),
        (["loss_increase_nats=.nan"], r"limits: loss_increase_nats: Input should be a finite number"),
        (["agreement_share=2"], r"limits: agreement_share: "),
    ],
)
def test_limits_that_mean_nothing_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        read_limits(None, given)


def test_what_cannot_be_compared_is_refused(trained_teacher: Path, held_out: Path) -> None:
    with pytest.raises(
        PlanError, match="two models are compared on a text that neither has seen; name one with --text"
    ):
        compare(trained_teacher, trained_teacher)
    with pytest.raises(PlanError, match=r"task_drop is a limit on lm-eval tasks, and none is named"):
        compare(trained_teacher, trained_teacher, held_out, CompareLimits(task_drop=0.01))


@pytest.mark.parametrize("of_run", [0, 1])
@pytest.mark.parametrize("live", [False, True])
def test_a_run_is_held_against_no_model(tmp_path: Path, of_run: int, live: bool) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "plan.yaml").touch()
    model: Any = (GPT2LMHeadModel(GPT2Config(n_layer=0, n_embd=8, n_head=1)), None) if live else tmp_path / "model"
    given = [model, run] if of_run else [run, model]
    told = "GPT2LMHeadModel" if live else model
    message = f"{run} is a run, and {told} is none; give two runs, or two models: those of a run lie in {run}/students/"
    with pytest.raises(PlanError, match=re.escape(message)):
        compare(*given, text="held_out.txt")


def answers(*values: float, higher: bool | None = True, **row: Any) -> TaskResults:
    """What a model got for the documents of a task."""
    whole = {"task": "sums", "metric": "acc,none", "task_version": "1", "num_fewshot": 0, "subtasks": None}
    mean = {**whole, "value": sum(values) / len(values), "higher_is_better": higher, **row}
    documents = [
        {"task": "sums", "metric": "acc,none", "document": n, "document_hash": str(n), "value": float(got)}
        for n, got in enumerate(values)
    ]
    return TaskResults([mean], documents)


def test_a_fall_in_a_task_fails_only_beyond_what_chance_makes_likely() -> None:
    """Of 100 documents one is lost: 0.01 with a standard error of 0.01; of 100 nine are lost: 0.09 with 0.029."""
    base = answers(*[1] * 100)
    (little,) = checks_of_tasks(base, answers(*[0] * 1, *[1] * 99), 0.0)
    (much,) = checks_of_tasks(base, answers(*[0] * 9, *[1] * 91), 0.0)
    assert (little.value, little.standard_error) == pytest.approx((0.01, 0.01))
    assert little.passes
    assert little.told == "0.01 ± 0.01 (no different), at most 0"
    assert (much.value, much.standard_error) == pytest.approx((0.09, (0.09 * 0.91 / 99) ** 0.5))
    assert not much.passes
    assert much.told == "0.09 ± 0.029, at most 0"
    (allowed,) = checks_of_tasks(base, answers(*[0] * 9, *[1] * 91), 0.05)
    assert allowed.passes
    (asked_nothing,) = checks_of_tasks(base, answers(*[0] * 100), None)
    assert asked_nothing.passes


def test_what_is_better_low_falls_by_rising_and_has_no_limit() -> None:
    (check,) = checks_of_tasks(answers(1, 2, 3, higher=False), answers(2, 3, 5, higher=False), 0.1)
    assert (check.value, check.limit) == (pytest.approx(4 / 3), None)


def test_tasks_that_cannot_be_compared_do_not_pass_a_limit() -> None:
    base = answers(1, 1, 0)
    (fewer,) = checks_of_tasks(base, answers(1, 1), 0.5)
    assert not fewer.passes
    assert fewer.told == "not on the same documents with the same examples, so not comparable"
    (missing,) = checks_of_tasks(base, TaskResults((), ()), 0.5)
    assert not missing.passes
    assert missing.told == "the second has not answered it"
    (perplexity,) = checks_of_tasks(answers(1, 1, 0, value=9.5), answers(1, 1, 1, value=7.5), 0.5)
    assert (perplexity.value, perplexity.limit, perplexity.standard_error) == (2.0, None, None)


@pytest.fixture
def _offline_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lm_eval, "TaskManager", functools.partial(TaskManager, include_defaults=False))
    monkeypatch.chdir(TASKS)  # the task names its data relative to here


@pytest.mark.usefixtures("_offline_tasks")
def test_tasks_of_two_models_are_held_against_each_other_document_by_document(
    trained_teacher: Path, held_out: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained_teacher, tmp_path / "copy")
    with_layers_swapped(tmp_path / "copy")
    asked = EvaluationSettings(tasks=("tiny_sums",), include_path=str(TASKS))
    nothing = CompareLimits(kl_nats=None, loss_increase_nats=None, agreement_share=None, task_drop=0.0)
    found = compare(
        trained_teacher, tmp_path / "copy", held_out, nothing, out=tmp_path / "out", evaluation=asked, display=Quiet()
    )
    rows = pd.read_parquet(tmp_path / "out" / "comparison.parquet").set_index("measure")
    assert {"tiny_sums acc,none", "tiny_sums acc_norm,none"} <= set(rows.index)
    row = rows.loc["tiny_sums acc,none"]
    assert row["value"] == pytest.approx(row["base"] - row["other"])
    assert row["standard_error"] >= 0
    assert row["passes"] == (row["value"] <= 1.96 * row["standard_error"])
    assert "standard_error" in COMPARISON.arrow_schema().names
    assert found.passes == bool(rows["passes"].all())
    unknown = asked.model_copy(update={"tasks": ("tiny_products",)})
    with pytest.raises(PlanError, match=r"evaluation\.tasks: lm-eval knows no task tiny_products"):
        compare(tmp_path / "gone", trained_teacher, held_out, evaluation=unknown, display=Quiet())


def test_tasks_of_runs_are_compared_member_by_member(finished: Path, tmp_path: Path) -> None:
    for name, got in (("first", [1.0] * 20), ("second", [0.0] * 10 + [1.0] * 10)):
        folder = shutil.copytree(finished, tmp_path / name)
        found = answers(*got)
        write_rows(folder, BENCHMARKS, [{"model": "90k", **row} for row in found.rows])
        write_rows(folder, DOCUMENTS, [{"model": "90k", **row} for row in found.documents])
    limits = CompareLimits(task_drop=0.1)
    worse = compare(tmp_path / "first", tmp_path / "second", limits=limits)
    assert [(check.model, check.measure) for check in worse.checks if not check.passes] == [("90k", "sums acc,none")]
    assert compare(tmp_path / "second", tmp_path / "first", limits=limits).passes
    with pytest.raises(PlanError, match=r"task_drop is a limit on lm-eval tasks, and .*answered none; leave it out"):
        compare(finished, tmp_path / "first", limits=limits)
