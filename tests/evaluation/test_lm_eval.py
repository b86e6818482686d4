"""Benchmarks on a local task whose right answers are known."""

import functools
import json
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
from minitron_nas.evaluation import lm_eval
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.testing import tiny_checkpoint

TASKS = Path(__file__).parent / "tasks"


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("minitron_nas.models.loading.compute_dtype", lambda device: torch.float32)
    # Reading all tasks that lm-eval brings takes ten seconds.
    monkeypatch.setattr(lm_eval, "TaskManager", functools.partial(TaskManager, include_defaults=False))
    monkeypatch.chdir(TASKS)  # the task names its data relative to here


def run(path, **values):
    settings = EvaluationSettings(**{"tasks": ("tiny_sums",), "include_path": str(TASKS), **values})
    return lm_eval.run_benchmarks(path, settings, seed=0)


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
    told = {key: rows["acc,none"][key] for key in ("task", "task_version", "num_fewshot", "limit")}
    assert told == {"task": "tiny_sums", "task_version": "2.0", "num_fewshot": 0, "limit": None}


def test_limit_and_examples_of_the_settings_are_used_and_told(tmp_path):
    path = tiny_checkpoint(tmp_path / "model", "llama")
    row = run(path, limit=3, num_fewshot=1)[0]
    assert (row["limit"], row["num_fewshot"]) == (3, 1)
    assert row["value"] * 3 == pytest.approx(round(row["value"] * 3))


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
    assert benchmarks.run(model, path, 0) == run(tmp_path / "other")


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
