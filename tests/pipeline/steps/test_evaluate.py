import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from minitron_nas.errors import CheckpointError, DataError, PlanError
from minitron_nas.execution.device import compute_dtype
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.steps.evaluate import evaluate
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.settings import TextSettings

SENTENCE = "The value of the expression is the result of the call, and an error is raised if there is none.\n"


@pytest.fixture
def sentence(tmp_path: Path) -> Path:
    file = tmp_path / "sentence.txt"
    file.write_text(SENTENCE)
    return file


def transformers_loss(folder: Path, ids: torch.Tensor) -> float:
    """The mean next-token loss by the model's own means, in the dtype that `evaluate` computes with."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=compute_dtype(torch.device("cpu")))
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss.item()


def ids_of(folder: Path, text: str) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])


def test_perplexity_equals_transformers_own(trained_teacher: Path, sentence: Path) -> None:
    ids = ids_of(trained_teacher, SENTENCE)
    result = evaluate(str(trained_teacher), sentence, display=Quiet())
    assert result.num_tokens == ids.shape[1]
    assert result.loss_nats == pytest.approx(transformers_loss(trained_teacher, ids), rel=1e-3)
    assert result.perplexity == pytest.approx(math.exp(result.loss_nats))
    assert (result.kl_nats, result.num_parameters) == (None, 138_768)


def test_a_model_that_is_larger_than_the_device_is_told_of_and_measured_the_same(
    trained_teacher: Path, sentence: Path, little_memory: None, told: Any
) -> None:
    whole = transformers_loss(trained_teacher, ids_of(trained_teacher, SENTENCE))
    result = evaluate(trained_teacher, sentence, trained_teacher, display=told)
    assert result.loss_nats == pytest.approx(whole, rel=1e-3)
    assert [note.partition(" it computes")[0] for note in told.notes] == [
        "teacher: the model is larger than the memory that",
        "model: the model is larger than the memory that",
    ]


def test_a_long_text_is_cut_into_sequences_and_its_rest_counts_too(trained_teacher: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(SENTENCE * 3)
    parts = ids_of(trained_teacher, SENTENCE * 3).split(50, dim=1)
    assert 2 < parts[-1].shape[1] < 50
    losses = [(transformers_loss(trained_teacher, part), part.shape[1] - 1) for part in parts]
    mean = sum(loss * num_labels for loss, num_labels in losses) / sum(num_labels for _, num_labels in losses)
    result = evaluate(trained_teacher, file, settings=TextSettings(sequence_length=50), display=Quiet())
    assert result.loss_nats == pytest.approx(mean, rel=1e-3)


def test_whole_sequences_and_the_rest_fill_one_bar(trained_teacher: Path, tmp_path: Path, told: Any) -> None:
    file = tmp_path / "long.txt"
    file.write_text(3 * SENTENCE)
    evaluate(trained_teacher, file, settings=TextSettings(sequence_length=50), display=told)
    fractions = told.fractions["evaluate"]
    assert fractions == sorted(fractions)
    assert fractions.count(1.0) == 1


def test_sequences_inside_a_document_begin_with_bos_and_count_without_it(
    trained_teacher: Path, bos_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder, file = tmp_path / "teacher", tmp_path / "text.txt"
    shutil.copytree(trained_teacher, folder)
    bos_tokenizer.save_pretrained(folder)
    file.write_text(SENTENCE * 3)
    bos, ids = bos_tokenizer.bos_token_id, ids_of(folder, SENTENCE * 3)
    windows = [ids[:, :50], *(torch.cat([torch.tensor([[bos]]), part], dim=1) for part in ids[:, 50:].split(49, dim=1))]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=compute_dtype(torch.device("cpu")))
    total = num_labels = 0
    for number, window in enumerate(windows):
        labels = window.clone()
        labels[:, : 2 if number else 1] = -100
        with torch.no_grad():
            counted = int((labels >= 0).sum())
            total, num_labels = total + model(window, labels=labels).loss.item() * counted, num_labels + counted
    assert ids[0, 0] == bos
    result = evaluate(folder, file, settings=TextSettings(sequence_length=50), display=Quiet())
    assert result.loss_nats == pytest.approx(total / num_labels, rel=1e-3)
    assert result.num_tokens == ids.shape[1]


def test_bos_begins_documents_alone_where_the_settings_say_so(
    trained_teacher: Path, bos_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder, file = tmp_path / "teacher", tmp_path / "text.txt"
    shutil.copytree(trained_teacher, folder)
    bos_tokenizer.save_pretrained(folder)
    file.write_text(SENTENCE * 3)
    parts = ids_of(folder, SENTENCE * 3).split(50, dim=1)
    losses = [(transformers_loss(folder, part), part.shape[1] - 1) for part in parts]
    mean = sum(loss * num_labels for loss, num_labels in losses) / sum(num_labels for _, num_labels in losses)
    settings = TextSettings(sequence_length=50, bos="document")
    assert evaluate(folder, file, settings=settings, display=Quiet()).loss_nats == pytest.approx(mean, rel=1e-3)


def test_of_a_folder_with_splits_the_one_that_is_asked_for_is_read(trained_teacher: Path, tmp_path: Path) -> None:
    for split, text in (("train", SENTENCE), ("test", SENTENCE * 2)):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / split / "part.txt").write_text(text)
    sizes = {split: ids_of(trained_teacher, SENTENCE * count).shape[1] for split, count in (("train", 1), ("test", 2))}
    assert evaluate(trained_teacher, tmp_path / "data", display=Quiet()).num_tokens == sizes["train"]
    tested = evaluate(trained_teacher, tmp_path / "data", settings=TextSettings(split="test"), display=Quiet())
    assert tested.num_tokens == sizes["test"]


def test_documents_do_not_see_each_other(trained_teacher: Path, tmp_path: Path) -> None:
    texts = [SENTENCE, "A module is a file that holds definitions."]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ids = [ids_of(trained_teacher, text) for text in texts]
    losses = [(transformers_loss(trained_teacher, part), part.shape[1] - 1) for part in ids]
    mean = sum(loss * num_labels for loss, num_labels in losses) / sum(num_labels for _, num_labels in losses)
    assert evaluate(trained_teacher, file, display=Quiet()).loss_nats == pytest.approx(mean, rel=2e-3)


def test_the_kl_of_a_model_to_itself_is_zero_and_to_another_is_not(
    trained_teacher: Path, sentence: Path, tmp_path: Path
) -> None:
    other = tiny_checkpoint(tmp_path / "other", "llama", tied=True)
    same = evaluate(trained_teacher, sentence, teacher=trained_teacher, display=Quiet())
    assert same.kl_nats == pytest.approx(0.0, abs=1e-6)
    assert evaluate(other, sentence, teacher=trained_teacher, display=Quiet()).kl_nats > 1


def test_a_teacher_with_another_vocabulary_is_refused(trained_teacher: Path, sentence: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", "llama")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="have different tokenizers"):
        evaluate(trained_teacher, sentence, teacher=other, display=Quiet())


def test_a_teacher_with_more_padding_of_its_vocabulary_is_not(
    trained_teacher: Path, sentence: Path, tmp_path: Path
) -> None:
    other = tiny_checkpoint(tmp_path / "other", "llama", vocab_size=328)
    shutil.copy(trained_teacher / "tokenizer.json", other)
    assert (evaluate(trained_teacher, sentence, teacher=other, display=Quiet()).kl_nats or 0) > 1


def test_sequences_longer_than_learned_positions_are_refused(sentence: Path, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", "gpt2", max_position_embeddings=32)
    with pytest.raises(PlanError, match=r"learned 32 positions, fewer than a sequence of 64 tokens has; choose"):
        evaluate(model, sentence, settings=TextSettings(sequence_length=64), display=Quiet())
    assert evaluate(model, sentence, settings=TextSettings(sequence_length=32), display=Quiet()).num_tokens > 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no file matches .*text\.txt"),
        ("", r"at least 2 are needed to predict one from another|is empty"),
    ],
    ids=["missing", "empty"],
)
def test_text_to_evaluate_on_must_be_there(
    trained_teacher: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=message):
        evaluate(trained_teacher, file, display=Quiet())
