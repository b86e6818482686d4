"""Benchmarks on a local task whose right answers are known."""

import functools
import json
import os
import re
import shutil
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_nas.errors import PlanError
from minitron_nas.evaluation import lm_eval, own_tasks
from minitron_nas.evaluation.own_tasks.summaries import rouge_l
from minitron_nas.evaluation.paired import differences
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.testing import tiny_checkpoint

TASKS = Path(__file__).parent / "tasks"
OWN_TASKS = Path(own_tasks.__file__).parent


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("minitron_nas.models.loading.compute_dtype", lambda device: torch.float32)
    # Reading all tasks that lm-eval brings takes ten seconds.
    monkeypatch.setattr(lm_eval, "TaskManager", functools.partial(TaskManager, include_defaults=False))
    monkeypatch.chdir(TASKS)  # the task names its data relative to here


def answered(path, **values):
    settings = EvaluationSettings(**{"tasks": ("tiny_sums",), "include_path": str(TASKS), **values})
    return lm_eval.run_benchmarks(path, settings, seed=0)


def run(path, **values):
    return answered(path, **values).rows


def accuracy_by_hand(path, num_documents):
    """The share of sums whose right answer has the higher log-probability, without lm-eval."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    rows = [json.loads(line) for line in (TASKS / "sums.jsonl").read_text().splitlines()[:num_documents]]
    right = 0
    for row in rows:
        start = tokenizer(f"{row['question']} =")["input_ids"]
        scores = []
        for choice in row["choices"]:
            ids = tokenizer(f"{row['question']} = {choice}")["input_ids"]
            with torch.no_grad():
                log_probs = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
            scores.append(sum(log_probs[i - 1, ids[i]].item() for i in range(len(start), len(ids))))
        right += scores.index(max(scores)) == row["answer"]
    return right / len(rows)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_task_gives_a_row_per_metric_with_the_accuracy_that_the_logits_give(tmp_path, seed):
    path = tiny_checkpoint(tmp_path / "model", "llama", seed)
    rows = {row["metric"]: row for row in run(path)}
    assert sorted(rows) == ["acc,none", "acc_norm,none"]
    assert rows["acc,none"]["value"] == pytest.approx(accuracy_by_hand(path, 5))
    told = {
        name: value for name, value in rows["acc,none"].items() if name not in ("metric", "value", "standard_error")
    }
    assert told == {
        "task": "tiny_sums",
        "task_version": "2.0",
        "num_fewshot": 0,
        "limit": None,
        "num_documents": 5,
        "higher_is_better": True,
        "subtasks": None,
    }


def test_limit_and_examples_of_the_settings_are_used_and_told(tmp_path):
    path = tiny_checkpoint(tmp_path / "model", "llama")
    row = run(path, limit=3, num_fewshot=1)[0]
    assert (row["limit"], row["num_fewshot"]) == (3, 1)
    assert row["value"] * 3 == pytest.approx(round(row["value"] * 3))


def test_a_task_may_say_its_own_number_of_examples(tmp_path):
    (tmp_path / "tasks").mkdir()
    text = (TASKS / "tiny_sums.yaml").read_text()
    for name in ("one", "two", "three"):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text.replace("task: tiny_sums", f"task: {name}"))
    path = tiny_checkpoint(tmp_path / "model", "llama")
    tasks = {"tasks": ("one@1", "two", "three@0"), "include_path": str(tmp_path / "tasks")}
    rows = run(path, num_fewshot=2, **tasks)
    assert {row["task"]: row["num_fewshot"] for row in rows} == {"one": 1, "two": 2, "three": 0}
    alone = {
        name: run(path, num_fewshot=number, **tasks | {"tasks": (name,)}) for name, number in (("one", 1), ("two", 2))
    }
    assert [row for row in rows if row["task"] != "three"] == alone["one"] + alone["two"]


def test_every_document_is_told_with_what_the_model_got_for_it(tmp_path):
    path = tiny_checkpoint(tmp_path / "model", "llama")
    found = answered(path)
    assert found.answers == []
    by_metric = {}
    for row in found.documents:
        by_metric.setdefault(row["metric"], []).append(row)
    assert {metric: [row["document"] for row in rows] for metric, rows in by_metric.items()} == {
        "acc,none": [0, 1, 2, 3, 4],
        "acc_norm,none": [0, 1, 2, 3, 4],
    }
    right = [row["value"] for row in by_metric["acc,none"]]
    assert [sum(right[:number]) / number for number in (1, 3, 5)] == [accuracy_by_hand(path, n) for n in (1, 3, 5)]
    hashes = {row["document_hash"] for row in found.documents}
    assert len(hashes) == 5
    assert {row["document_hash"] for row in answered(tiny_checkpoint(tmp_path / "b", "llama", 1)).documents} == hashes


def test_prompts_and_answers_are_kept_where_they_are_asked_for(tmp_path):
    path = tiny_checkpoint(tmp_path / "model", "llama")
    found = answered(path, keep_answers=True, num_fewshot=1)
    assert [row["document"] for row in found.answers] == [0, 1, 2, 3, 4]
    first = found.answers[0]
    assert first["prompt"].endswith("\n\n1 + 1 =")
    assert json.loads(first["choices"]) == [" 2", " 3"]
    assert first["target"] == "0"
    (better,) = [row["value"] for row in found.documents if row["document"] == 0 and row["metric"] == "acc,none"]
    likelihoods = [answer[0] for answer in json.loads(first["answers"])]
    assert better == (likelihoods[0] > likelihoods[1])


def test_two_models_differ_by_the_mean_over_documents_that_one_got_right_and_the_other_not(tmp_path):
    paths = [tiny_checkpoint(tmp_path / str(seed), "llama", seed) for seed in range(2)]
    first, second = (answered(path) for path in paths)
    found = differences(first, second)
    assert set(found) == {("tiny_sums", "acc,none"), ("tiny_sums", "acc_norm,none")}
    each = [[row["value"] for row in got.documents if row["metric"] == "acc,none"] for got in (first, second)]
    gaps = [one - other for one, other in zip(*each, strict=True)]
    difference = found["tiny_sums", "acc,none"]
    assert difference.value == pytest.approx(statistics.fmean(gaps))
    assert difference.value == pytest.approx(first.rows[0]["value"] - second.rows[0]["value"])
    assert difference.standard_error == pytest.approx(statistics.stdev(gaps) / 5**0.5)
    assert difference.num_documents == 5
    assert not differences(first, first)["tiny_sums", "acc,none"].differs
    assert differences(first, answered(paths[1], limit=4)) == {}, "not the same documents"
    assert differences(first, answered(paths[1], num_fewshot=1)) == {}, "not the same prompts"


def grouped(folder, **aggregation):
    """A task of two sums, one of three, and a group of both."""
    text = (TASKS / "tiny_sums.yaml").read_text().replace("sums.jsonl", str(folder / "sums.jsonl"))
    lines = (TASKS / "sums.jsonl").read_text().splitlines()
    for name, part in (("few", lines[:2]), ("many", lines[2:])):
        (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n")
        own = text.replace(str(folder / "sums.jsonl"), str(folder / f"{name}.jsonl"))
        (folder / f"{name}.yaml").write_text(own.replace("task: tiny_sums", f"task: {name}"))
    group = {"group": "all_sums", "task": ["few", "many"], "aggregate_metric_list": [{"metric": "acc", **aggregation}]}
    (folder / "group.yaml").write_text(json.dumps(group))
    return {"tasks": ("all_sums",), "include_path": str(folder)}


def test_a_group_is_the_mean_over_the_documents_of_its_tasks(tmp_path):
    asked = grouped(tmp_path, weight_by_size=True)
    first, second = (answered(tiny_checkpoint(tmp_path / str(seed), "llama", seed), **asked) for seed in range(2))
    (row,) = [row for row in first.rows if row["task"] == "all_sums"]
    assert (row["subtasks"], row["num_documents"]) == ("few,many", 5)
    whole = answered(tmp_path / "0"), answered(tmp_path / "1")
    group, plain = differences(first, second)["all_sums", "acc,none"], differences(*whole)["tiny_sums", "acc,none"]
    assert (group.value, group.standard_error) == pytest.approx((plain.value, plain.standard_error))
    assert group.num_documents == 5


def test_a_group_that_weighs_its_tasks_alike_is_no_mean_over_documents(tmp_path):
    asked = grouped(tmp_path, weight_by_size=False)
    first = answered(tiny_checkpoint(tmp_path / "0", "llama", 1), **asked)
    values = {row["task"]: row["value"] for row in first.rows if row["metric"] == "acc,none"}
    assert values["few"] != values["many"]
    assert values["all_sums"] == pytest.approx((values["few"] + values["many"]) / 2)
    assert ("all_sums", "acc,none") not in differences(first, first)
    assert ("many", "acc,none") in differences(first, first)


def test_offline_is_all_tasks_of_the_users_folder(tmp_path):
    (tmp_path / "more.yaml").write_text((TASKS / "tiny_sums.yaml").read_text().replace("task: tiny_", "task: more_"))
    (tmp_path / "tiny_sums.yaml").write_text((TASKS / "tiny_sums.yaml").read_text())
    rows = run(tiny_checkpoint(tmp_path / "model", "llama"), tasks=("offline",), include_path=str(tmp_path))
    assert {row["task"] for row in rows} == {"more_sums", "tiny_sums"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlanError, match=r"evaluation\.include_path: .*empty holds no task of lm-eval"):
        lm_eval.Benchmarks(EvaluationSettings(tasks=("offline",), include_path=str(tmp_path / "empty")))


@pytest.fixture
def summaries(tmp_path):
    """XL-Sum's rows as the hub has them, and a folder with our task that reads them; each row is told by its number."""
    for split, number in (("validation", 20), ("test", 11)):
        rows = [
            {"id": f"{n}", "url": "u", "title": "t", "summary": f"{split} sum {n}.", "text": f"{split} text {n}."}
            for n in range(number)
        ]
        folder = tmp_path / "xlsum" / "english" / split
        folder.mkdir(parents=True)
        datasets.Dataset.from_list(rows).to_parquet(folder / "0000.parquet")
    text = (OWN_TASKS / "xlsum_english.yaml").read_text()
    assert "dataset_path: csebuetnlp/xlsum\n" in text
    own = tmp_path / "own"
    shutil.copytree(OWN_TASKS, own)
    (own / "xlsum_english.yaml").write_text(text.replace("csebuetnlp/xlsum\n", f"{tmp_path / 'xlsum'}\n"))
    return own


def test_xl_sum_is_asked_with_examples_of_the_validation_split_on_a_fifth_of_the_test_split(tmp_path, summaries):
    path = tiny_checkpoint(tmp_path / "model", "llama", max_position_embeddings=1024)
    found = answered(path, tasks=("xlsum_english@3",), include_path=str(summaries), keep_answers=True)
    (row,) = found.rows
    told = ("task", "metric", "task_version", "num_fewshot", "num_documents", "higher_is_better")
    assert tuple(row[key] for key in told) == ("xlsum_english", "rougeL,none", "1.0", 3, 3, True)
    for answer, number in zip(found.answers, (0, 5, 10), strict=True):
        *examples, asked = answer["prompt"].split("\n\n")
        assert asked == f"Article: test text {number}.\nSummary:"
        example = r"Article: validation text (\d+)\.\nSummary: validation sum \1\."
        assert [bool(re.fullmatch(example, one)) for one in examples] == [True] * 3
        assert answer["target"] == f"test sum {number}."
    scores = [
        rouge_l({"summary": answer["target"]}, json.loads(answer["answers"]))["rougeL"] for answer in found.answers
    ]
    assert row["value"] == pytest.approx(statistics.fmean(scores))


def test_our_task_is_known_without_a_folder_of_the_users(monkeypatch):
    def refuse(**named):
        raise OSError(f"asked for {named}")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    benchmarks = lm_eval.Benchmarks(EvaluationSettings(tasks=("xlsum_english@3",)))
    with pytest.raises(PlanError, match=r"the task xlsum_english here .*asked for .*csebuetnlp/xlsum"):
        benchmarks.require_data()


REFUSED = {
    "its examples are fixed": ("test_split", "num_fewshot: 0\ntest_split", "odd@2", "odd has 0 examples in its prompt"),
    "it runs what a model writes": ("test_split", "unsafe_code: true\ntest_split", "odd", "odd runs the programs that"),
}


@pytest.mark.parametrize(("old", "new", "asked", "message"), REFUSED.values(), ids=REFUSED)
def test_what_lm_eval_would_not_do_as_asked_is_refused_before_any_model_is_there(tmp_path, old, new, asked, message):
    text = (TASKS / "tiny_sums.yaml").read_text().replace("task: tiny_sums", "task: odd")
    (tmp_path / "odd.yaml").write_text(text.replace(old, new, 1))
    settings = EvaluationSettings(tasks=(asked,), include_path=str(tmp_path))
    with pytest.raises(PlanError, match=rf"^evaluation\.tasks: {message}"):
        lm_eval.Benchmarks(settings).require_data()
    allowed = settings.model_copy(update={"tasks": ("odd",), "run_generated_code": True})
    lm_eval.Benchmarks(allowed).require_data()
    assert len(run(tiny_checkpoint(tmp_path / "model", "llama"), **allowed.model_dump())) == 2


def test_a_metric_that_runs_programs_is_told_whether_it_may(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    (tmp_path / "own_docs.py").write_text(
        "import os\n\n\ndef docs(data):\n"
        "    if os.environ['HF_ALLOW_CODE_EVAL'] != '1':\n"
        "        raise ValueError('set HF_ALLOW_CODE_EVAL to 1')\n"
        "    return data\n"
    )
    text = (TASKS / "tiny_sums.yaml").read_text()
    (tmp_path / "sums.yaml").write_text(
        text.replace("doc_to_text:", "process_docs: !function own_docs.docs\ndoc_to_text:")
    )
    settings = EvaluationSettings(tasks=("tiny_sums",), include_path=str(tmp_path))
    with pytest.raises(PlanError, match="tiny_sums runs the programs that a model writes"):
        lm_eval.Benchmarks(settings).require_data()
    lm_eval.Benchmarks(settings.model_copy(update={"run_generated_code": True})).require_data()
    assert os.environ["HF_ALLOW_CODE_EVAL"] == "1"


def test_a_task_that_is_also_part_of_a_group_is_asked_for_once(tmp_path):
    asked = grouped(tmp_path, weight_by_size=True)
    settings = EvaluationSettings(**asked | {"tasks": ("all_sums", "few@1")})
    with pytest.raises(PlanError, match="few is asked for by all_sums and by few; name one of them"):
        lm_eval.Benchmarks(settings).require_data()


def test_the_standard_error_is_that_of_a_mean_of_zeros_and_ones(tmp_path):
    row = run(tiny_checkpoint(tmp_path / "model", "llama"))[0]
    assert 0 < row["value"] < 1
    assert row["standard_error"] == pytest.approx((row["value"] * (1 - row["value"]) / (5 - 1)) ** 0.5)


def test_what_lm_eval_prints_is_kept_from_stdout_which_carries_results(tmp_path, monkeypatch, capsys):
    path = tiny_checkpoint(tmp_path / "model", "llama")

    def evaluate(**arguments):
        sys.stdout.write("bootstrapping for stddev: perplexity")
        return {"results": {}}

    monkeypatch.setattr("lm_eval.simple_evaluate", evaluate)
    assert run(path) == []
    assert capsys.readouterr().out == ""


def test_an_unknown_task_is_refused_before_the_model_is_loaded(tmp_path):
    with pytest.raises(
        PlanError,
        match=r"evaluation\.tasks: lm-eval knows no task tiny_products, none; list its tasks with `lm-eval ls tasks`",
    ):
        run(tmp_path / "missing", tasks=("tiny_sums", "tiny_products", "none"))


BROKEN = {
    "its file is not there": ("sums.jsonl", "gone.jsonl"),
    "its data set is not to be had": ("dataset_path: json", "dataset_path: nobody/nothing"),
    "it has no such split": ("test_split: test", "test_split: held_out"),
    "it asks for a package that is not there": ("doc_to_text:", "process_docs: !function gone.module\ndoc_to_text:"),
    "it puts out what nobody knows": ("output_type: multiple_choice", "output_type: song"),
}


@pytest.mark.parametrize(("old", "new"), BROKEN.values(), ids=BROKEN)
def test_a_task_that_cannot_be_built_is_told_of_in_one_line_before_any_model_is_there(tmp_path, old, new):
    text = (TASKS / "tiny_sums.yaml").read_text()
    assert old in text
    (tmp_path / "sums.yaml").write_text(text.replace(old, new).replace("tiny_sums", "broken_sums"))
    settings = EvaluationSettings(tasks=("tiny_sums", "broken_sums"), include_path=str(tmp_path))
    (tmp_path / "tiny_sums.yaml").write_text(text)
    benchmarks = lm_eval.Benchmarks(settings, "importance.depth.task")
    with pytest.raises(
        PlanError, match=r"^importance.depth.task: lm-eval cannot build the task broken_sums here"
    ) as told:
        benchmarks.require_data()
    assert "\n" not in str(told.value)


def test_tasks_that_can_be_built_pass(capsys):
    lm_eval.Benchmarks(EvaluationSettings(tasks=("tiny_sums",), include_path=str(TASKS))).require_data()
    assert capsys.readouterr().out == ""


def test_the_accuracy_is_the_rows_and_a_task_without_one_is_refused(tmp_path):
    path = tiny_checkpoint(tmp_path / "model", "llama")
    assert lm_eval.accuracy(run(path), "tiny_sums") == pytest.approx(accuracy_by_hand(path, 5))
    rows = [{"task": "wikitext", "metric": "word_perplexity,none", "value": 9.0}]
    message = (
        r"importance\.depth\.task: wikitext gives word_perplexity but no acc; choose a multiple-choice task such as"
    )
    with pytest.raises(PlanError, match=message):
        lm_eval.accuracy(rows, "wikitext", "importance.depth.task")


def test_a_loaded_model_is_measured_as_it_is(tmp_path):
    path = tiny_checkpoint(tmp_path / "model", "llama")
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path / "other", "llama", 1))
    benchmarks = lm_eval.Benchmarks(EvaluationSettings(tasks=("tiny_sums",), include_path=str(TASKS)))
    assert benchmarks.run(model, path, 0) == answered(tmp_path / "other")


@pytest.mark.parametrize("num_words", [0, 3, 60, 200])
def test_rolling_windows_all_begin_with_bos_where_the_tokenizer_begins_a_text_with_it(
    tmp_path, bos_tokenizer, num_words
):
    path = tiny_checkpoint(tmp_path / "model", "llama", max_position_embeddings=64)
    bos_tokenizer.save_pretrained(path)
    model, text = (
        AutoModelForCausalLM.from_pretrained(path),
        " ".join(f"stone {number * 7919}" for number in range(num_words)),
    )
    measured = lm_eval.WindowedModel(pretrained=model, tokenizer=str(path), batch_size=3)
    (found,) = measured.loglikelihood_rolling([SimpleNamespace(args=(text,))])
    ids, bos = bos_tokenizer(text, add_special_tokens=False)["input_ids"], bos_tokenizer.bos_token_id
    expected, done = 0.0, 0
    while done < len(ids):
        seen = [bos, *ids[max(done - 1, 0) :]][:64]  # what a window of 64 can see: BOS, the token before, and its own
        new = min(len(ids) - done, 64 if done == 0 else 63)
        with torch.no_grad():
            log_probs = model(torch.tensor([seen])).logits[0].log_softmax(dim=-1)
        first = 0 if done == 0 else 1
        expected += sum(log_probs[first + n, ids[done + n]].item() for n in range(new))
        done += new
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_tokenizer_without_bos_is_measured_as_lm_eval_does(tmp_path):
    path = tiny_checkpoint(tmp_path / "model", "llama", max_position_embeddings=64)
    model, request = AutoModelForCausalLM.from_pretrained(path), SimpleNamespace(args=("sea stone " * 40,))
    ours, theirs = (
        kind(pretrained=model, tokenizer=str(path), batch_size=3).loglikelihood_rolling([request])
        for kind in (lm_eval.WindowedModel, HFLM)
    )
    assert ours == theirs
