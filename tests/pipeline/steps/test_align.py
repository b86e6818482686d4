import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_nas.alignment.settings import AlignmentSettings
from minitron_nas.errors import CheckpointError, DataError, PlanError, RunFolderError
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.push import push
from minitron_nas.pipeline.steps import align as aligning
from minitron_nas.pipeline.steps.align import Aligned
from minitron_nas.storage.schemas import ALIGNMENT
from minitron_nas.testing import tiny_tokenizer
from minitron_nas.text.settings import TextSettings
from tests.reporting.hub_rules import faults, head_of

TEXT = TextSettings(sequence_length=64, validation_samples=8)
FAST = AlignmentSettings(learning_rate=4e-3, epochs=2, batch_sequences=4, micro_batch_sequences=4, num_evaluations=2)
ANSWER = "It is so."

needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="trl is an extra")


class Notes(Quiet):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    asked = ({"role": "user", "content": f"Tell me {number}"} for number in range(60))
    rows = [{"messages": [turn, {"role": "assistant", "content": ANSWER}]} for turn in asked]
    return write(tmp_path_factory.mktemp("data") / "chats.jsonl", rows)


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"Tell me {number}", "chosen": ANSWER, "rejected": "No and no."} for number in range(40)]
    return write(tmp_path_factory.mktemp("data") / "pairs.jsonl", rows)


@pytest.fixture(scope="module")
def align(trained_teacher: Path, conversations: Path) -> Callable[..., Aligned]:
    """Align the trained teacher for a few steps; arguments replace the defaults."""

    def call(out: Path, **changes: Any) -> Aligned:
        arguments = {"student": trained_teacher, "data": conversations, "settings": FAST, "text": TEXT}
        return aligning.align(**{**arguments, "display": Quiet(), **changes}, out=out)

    return call


@pytest.fixture(scope="module")
def tuned(align: Callable[..., Aligned], tmp_path_factory: pytest.TempPathFactory) -> Aligned:
    return align(tmp_path_factory.mktemp("tuned") / "tuned")


@pytest.fixture(scope="module")
def copied(align: Callable[..., Aligned], tuned: Aligned, tmp_path_factory: pytest.TempPathFactory) -> Aligned:
    settings = FAST.model_copy(update={"method": "kd"})
    return align(tmp_path_factory.mktemp("copied") / "copied", settings=settings, teacher=tuned.path)


@pytest.fixture(scope="module")
def preferred(align: Callable[..., Aligned], preferences: Path, tmp_path_factory: pytest.TempPathFactory) -> Aligned:
    settings = FAST.model_copy(update={"method": "dpo", "learning_rate": 3e-4, "epochs": 2})
    return align(tmp_path_factory.mktemp("preferred") / "preferred", settings=settings, data=preferences)


def answer_of(folder: Path, question: str) -> list[str]:
    """The tokens that a folder's model answers with, as a stock user would ask."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    turns = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    told = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return list(tokenizer.convert_ids_to_tokens(told))


def independent_loss(folder: Path, rows: list[dict[str, Any]]) -> float:
    """The mean loss over answers and their end, conversation by conversation."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    total, count = 0.0, 0
    for row in rows:
        ask = tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, tokenize=False)
        asked = tokenizer(ask, add_special_tokens=False)["input_ids"]
        told = tokenizer(row["messages"][1]["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        labels = torch.tensor([[-100] * len(asked) + told])
        with torch.no_grad():
            total += model(input_ids=torch.tensor([asked + told]), labels=labels).loss.item() * len(told)
        count += len(told)
    return total / count


def test_fine_tuning_lowers_the_held_out_loss_to_what_stock_transformers_measures(
    tuned: Aligned, conversations: Path, trained_teacher: Path
) -> None:
    assert tuned.after.loss_nats < tuned.before.loss_nats - 1
    assert (tuned.harm, tuned.after.kl_nats, tuned.after.margin) == (None, None, None)
    rows = [json.loads(line) for line in conversations.read_text().splitlines()]
    assert independent_loss(trained_teacher, rows[:8]) == pytest.approx(tuned.before.loss_nats, abs=0.3)
    assert independent_loss(tuned.path, rows[:8]) == pytest.approx(tuned.after.loss_nats, abs=0.1)


def test_the_result_answers_and_stops_where_an_answer_ends(tuned: Aligned) -> None:
    told = answer_of(tuned.path, "Tell me 100")
    assert told[-1] == "<|im_end|>"
    assert len(told) < 40
    assert tuned.proof.max_abs_difference <= tuned.proof.tolerance


def test_nothing_but_the_folder_is_left_and_it_says_what_was_done(tuned: Aligned, conversations: Path) -> None:
    assert [path.name for path in tuned.path.parent.iterdir()] == ["tuned"]
    frame = pd.read_parquet(tuned.path / "alignment.parquet")
    assert list(frame.columns) == [column.name for column in ALIGNMENT.columns]
    assert frame["look"].tolist() == ["before", "after"]
    assert frame["loss_nats"].tolist() == [tuned.before.loss_nats, tuned.after.loss_nats]
    assert frame["num_conversations"].tolist() == [6, 6]
    _, front, page = (tuned.path / "README.md").read_text().split("---\n", 2)
    head = head_of((tuned.path / "README.md").read_text())
    assert not faults(head)
    assert yaml.safe_load(front) == head
    assert head["tags"] == ["minitron", "conversational", "sft"]
    (loss, _) = head["model-index"][0]["results"][0]["metrics"]
    assert loss == {"type": "loss", "value": round(tuned.after.loss_nats, 6), "name": "next-token loss in nats"}
    texts = [file.read_text() for file in tuned.path.rglob("*") if file.suffix in (".json", ".jinja", ".md")]
    assert not [text for text in texts if str(conversations.parent) in text or str(tuned.path.parent) in text]
    assert f"{tuned.after.loss_nats:.3f}" in page
    assert "Note" not in page
    about = json.loads((tuned.path / "lineage.json").read_text())["alignment"]
    assert (about["method"], about["num_conversations"], about["data"]) == ("sft", 54, conversations.name)


def test_the_licence_is_what_the_students_card_says(
    align: Callable[..., Aligned], trained_teacher: Path, tuned: Aligned, tmp_path: Path
) -> None:
    assert "Neither the student's own card nor a plan says" in (tuned.path / "README.md").read_text()
    student = shutil.copytree(trained_teacher, tmp_path / "student")
    (student / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n")
    (student / "LICENSE").write_text("terms")
    result = align(tmp_path / "out", student=student, settings=FAST.model_copy(update={"epochs": 1}))
    card = (result.path / "README.md").read_text()
    head = head_of(card)
    assert not faults(head)
    assert (head["license"], head["language"]) == ("apache-2.0", ["en"])
    assert "The student's licence applies to it: `apache-2.0`." in card
    assert (result.path / "LICENSE").read_text() == "terms"
    pushed = push(result.path, "owner/name", dry_run=True)
    assert {"README.md", "LICENSE", "alignment.parquet", "model.safetensors"} < pushed.files.keys()


def test_learning_from_an_instruct_teacher_lowers_the_kl_to_it(copied: Aligned, tuned: Aligned) -> None:
    assert copied.before.kl_nats is not None
    assert copied.after.kl_nats is not None
    assert copied.after.kl_nats < 0.5 * copied.before.kl_nats
    assert answer_of(copied.path, "Tell me 100")[-1] == "<|im_end|>"
    lineage = json.loads((copied.path / "lineage.json").read_text())
    assert lineage["teacher"]["name"] == tuned.path.name


@needs_trl
def test_preferences_raise_the_margin(preferred: Aligned) -> None:
    before, after = preferred.before, preferred.after
    assert before.preference_loss == pytest.approx(0.6931, abs=1e-4)
    assert after.preference_loss is not None
    assert after.preference_loss < 0.6
    assert after.margin is not None
    assert after.margin > 0.1
    assert after.accuracy == 1


@needs_trl
def test_the_margin_is_the_gain_in_log_probability_that_stock_transformers_measures(
    preferred: Aligned, trained_teacher: Path
) -> None:
    def log_probability(folder: Path, told: str) -> float:
        rows = [{"messages": [{"role": "user", "content": "Tell me 5"}, {"role": "assistant", "content": told}]}]
        length = len(AutoTokenizer.from_pretrained(folder)(told + "<|im_end|>")["input_ids"])
        return -length * independent_loss(folder, rows)

    better, worse = (
        log_probability(preferred.path, told) - log_probability(trained_teacher, told)
        for told in (ANSWER, "No and no.")
    )
    assert 0.1 * (better - worse) == pytest.approx(preferred.after.margin, rel=0.2)
    config = json.loads((preferred.path / "config.json").read_text())
    assert config["eos_token_id"] == json.loads((trained_teacher / "config.json").read_text())["eos_token_id"]


def test_a_student_that_training_makes_worse_stays_as_it_was_and_is_told(
    align: Callable[..., Aligned], trained_teacher: Path, tmp_path: Path
) -> None:
    notes = Notes()
    settings = FAST.model_copy(update={"learning_rate": 2.0, "epochs": 1})
    worse = align(tmp_path / "worse", settings=settings, display=notes)
    assert worse.after == worse.before
    assert worse.harm is not None
    assert worse.harm in notes.said
    assert "**Note:** training made it worse" in (worse.path / "README.md").read_text()
    ids = torch.tensor([[5, 6, 7]])
    kept, given = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (worse.path, trained_teacher))
    assert torch.equal(kept, given)


@pytest.fixture
def base(trained_teacher: Path, tmp_path: Path) -> Path:
    """The trained teacher as a base model: no template, and a text ends with another token."""
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(trained_teacher).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token, tokenizer.pad_token = None, "<|im_start|>", "<|im_start|>"
    tokenizer.save_pretrained(folder)
    for file in ("config.json", "generation_config.json"):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, "eos_token_id": 1, "pad_token_id": 1}))
    return folder


def test_a_base_student_without_a_template_is_told_where_to_take_one(
    align: Callable[..., Aligned], base: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"'base' has no chat template; take an instruct model's with --template-from"):
        align(tmp_path / "out", student=base)
    assert not (tmp_path / "out").exists()


def test_a_base_student_with_an_instruct_template_stops_where_that_ends_answers(
    align: Callable[..., Aligned], base: Path, trained_teacher: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    result = align(tmp_path / "out", student=base, template_from=trained_teacher)
    assert (tmp_path / "out").readlink() == result.path == tmp_path / "elsewhere"
    tokenizer = AutoTokenizer.from_pretrained(result.path)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(trained_teacher).chat_template
    assert tokenizer.eos_token == "<|im_end|>"
    assert answer_of(result.path, "Tell me 100")[-1] == "<|im_end|>"
    assert json.loads((result.path / "config.json").read_text())["eos_token_id"] == 2


def test_a_template_whose_tokens_the_student_lacks_is_refused_by_their_names(
    align: Callable[..., Aligned], base: Path, trained_teacher: Path, tmp_path: Path
) -> None:
    other = tmp_path / "instruct"
    tokenizer = tiny_tokenizer(316)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|turn|>")
    AutoModelForCausalLM.from_pretrained(trained_teacher).save_pretrained(other)
    tokenizer.save_pretrained(other)
    words = r"the vocabulary of 'base' lacks '<\|turn\|>', which the chat template of 'instruct' writes; take"
    with pytest.raises(CheckpointError, match=words):
        align(tmp_path / "out", student=base, template_from=other)
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"settings": AlignmentSettings(method="kd")}, PlanError, "name it with --teacher"),
        ({"teacher": "x"}, PlanError, "method sft learns from no teacher; leave --teacher out"),
        ({"data": "none.jsonl"}, DataError, r"no file matches none\.jsonl"),
        ({"validation": "none.jsonl"}, DataError, r"no file matches none\.jsonl"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    align: Callable[..., Aligned], tmp_path: Path, changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as raised:
        align(tmp_path / "out", **changes)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("out*"))


def test_without_trl_the_extra_is_named(
    align: Callable[..., Aligned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_nas.alignment.preference.find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"--method dpo needs trl; pip install 'minitron-nas\[align\]'"):
        align(tmp_path / "out", settings=AlignmentSettings(method="dpo"))


def test_a_folder_that_is_not_empty_is_refused(align: Callable[..., Aligned], tuned: Aligned) -> None:
    with pytest.raises(RunFolderError, match="exists and is not empty"):
        align(tuned.path)


def test_rows_that_are_held_out_elsewhere_are_those_that_are_measured(
    align: Callable[..., Aligned], conversations: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in conversations.read_text().splitlines()]
    other = write(tmp_path / "other.jsonl", rows[:3])
    result = align(tmp_path / "out", validation=other, settings=FAST.model_copy(update={"epochs": 1}))
    about = json.loads((result.path / "lineage.json").read_text())["alignment"]
    assert (about["num_conversations"], about["num_held_out"], about["validation"]) == (57, 3, other.name)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["sft", pytest.param("dpo", marks=needs_trl)])
def test_what_is_killed_leaves_no_folder_and_goes_on(
    trained_teacher: Path, conversations: Path, preferences: Path, tmp_path: Path, method: str
) -> None:
    data = preferences if method == "dpo" else conversations
    arguments = [
        *(sys.executable, "-m", "minitron_nas", "align", trained_teacher, "--data", data, "--out", tmp_path / "out"),
        *("--method", method, "--epochs", 8, "--batch", 4, "--sequence-length", 64, "--set", "runner.kind=local"),
        *("--set", "align.checkpoint_minutes=0", "--set", "align.num_evaluations=8", "--json"),
    ]
    command = [str(argument) for argument in arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        begun = time.monotonic()
        while not list((tmp_path / "out.work").glob("checkpoints-*/checkpoint-*")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() - begun < 400
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["path"] == str(tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not (tmp_path / "out.work").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
