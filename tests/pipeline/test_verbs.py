import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_nas.distillation.settings import TextSettings
from minitron_nas.errors import DataError, InvalidArchitectureError, PlanError, RunFolderError
from minitron_nas.execution.device import compute_dtype
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.verbs import evaluate, parse_shape, prune
from minitron_nas.testing import tiny_checkpoint

TEXT = TextSettings(sequence_length=64, calibration_samples=16)
SENTENCE = "The value of the expression is the result of the call, and an error is raised if there is none.\n"


@pytest.fixture
def sentence(tmp_path: Path) -> Path:
    file = tmp_path / "sentence.txt"
    file.write_text(SENTENCE)
    return file


def pruned_to(out: Path, teacher: object, shape: dict[str, int], text_file: Path) -> object:
    return prune(teacher, shape, text_file, out, TEXT, display=Quiet())


# prune


def test_pruning_nothing_gives_the_teachers_tensors_to_the_bit(
    trained_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    pruned_to(tmp_path / "student", trained_teacher, {"intermediate_size": 128}, text_file)
    teacher, student = (AutoModelForCausalLM.from_pretrained(f) for f in (trained_teacher, tmp_path / "student"))
    expected = teacher.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in student.state_dict().items())


def test_a_pruned_student_has_its_shape_proof_and_lineage(
    trained_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    shape = {"num_hidden_layers": 4, "hidden_size": 42, "num_key_value_heads": 1}
    result = prune(trained_teacher, shape, text_file, tmp_path / "student", TEXT, display=Quiet())
    model = AutoModelForCausalLM.from_pretrained(result.path, trust_remote_code=False)
    assert {name: getattr(model.config, name) for name in shape} == shape
    assert model.config.num_attention_heads == 3
    assert model.num_parameters() == result.num_parameters
    assert result.proof.max_abs_difference <= result.proof.tolerance
    lineage = json.loads((result.path / "lineage.json").read_text())
    assert lineage["tokens_trained"] == 0
    assert lineage["kept_layers"][0] == 0
    assert lineage["kept_layers"][-1] == 4


def test_a_live_teacher_is_pruned_without_being_changed(trained_teacher: Path, text_file: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained_teacher)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pair = (model, AutoTokenizer.from_pretrained(trained_teacher))
    from_pair = prune(pair, {"hidden_size": 42}, text_file, tmp_path / "one", TEXT, display=Quiet())
    from_folder = prune(trained_teacher, {"hidden_size": 42}, text_file, tmp_path / "two", TEXT, display=Quiet())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    weights = [(result.path / "model.safetensors").read_bytes() for result in (from_pair, from_folder)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"hidden_size": 49}, r"hidden_size=49 exceeds the source's 48; pruning only removes"),
        ({"hidden_size": 40}, r"hidden_size=40 with num_attention_heads=6 .*nearest legal hidden_size: 36 or 42"),
        ({"vocab_size": 100}, r"'vocab_size' is not a prunable size; choose from num_hidden_layers, hidden_size"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers=0 must be an integer of at least 1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_and_leaves_nothing(
    trained_teacher: Path, text_file: Path, tmp_path: Path, shape: dict[str, int], message: str
) -> None:
    with pytest.raises(InvalidArchitectureError, match=message):
        pruned_to(tmp_path / "student", trained_teacher, shape, text_file)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["plan.yaml", "config.json"])
def test_pruning_never_replaces_a_folder_that_holds_something(
    trained_teacher: Path, text_file: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunFolderError, match=r"exists and is not empty; choose an empty or new --out"):
        pruned_to(tmp_path, trained_teacher, {"hidden_size": 42}, text_file)
    assert (tmp_path / name).read_text() == "mine"


def test_a_shape_is_read_from_names_and_integers() -> None:
    assert parse_shape("hidden_size=504, intermediate_size=1024") == {"hidden_size": 504, "intermediate_size": 1024}


@pytest.mark.parametrize("text", ["", "hidden_size", "hidden_size=", "hidden_size=x", "hidden_size=-1", "a=1,,b=2"])
def test_a_shape_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"--shape '.*' is not of the form name=integer, such as hidden_size=504"):
        parse_shape(text)


# evaluate


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


def test_a_long_text_is_cut_into_sequences_and_its_rest_counts_too(trained_teacher: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(SENTENCE * 3)
    parts = ids_of(trained_teacher, SENTENCE * 3).split(50, dim=1)
    assert 2 < parts[-1].shape[1] < 50
    losses = [(transformers_loss(trained_teacher, part), part.shape[1] - 1) for part in parts]
    mean = sum(loss * num_labels for loss, num_labels in losses) / sum(num_labels for _, num_labels in losses)
    result = evaluate(trained_teacher, file, sequence_length=50, display=Quiet())
    assert result.loss_nats == pytest.approx(mean, rel=1e-3)


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
    other = tiny_checkpoint(tmp_path / "other", "llama", vocab_size=300)
    message = r"the model's vocabulary has 320 entries and the teacher's 300; a KL needs the same"
    with pytest.raises(DataError, match=message):
        evaluate(trained_teacher, sentence, teacher=other, display=Quiet())


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
