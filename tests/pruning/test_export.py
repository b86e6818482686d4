import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_nas.errors import ProofError
from minitron_nas.models import stock_config
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pruning import export
from minitron_nas.pruning.export import export_student
from minitron_nas.pruning.student import build_student
from minitron_nas.storage.atomic import read_json
from minitron_nas.storage.lineage import Lineage, Origin, Proof, read_lineage
from minitron_nas.storage.weights import read_headers
from minitron_nas.testing import tiny_checkpoint, tiny_config, tiny_model, tiny_tokenizer

FAMILIES = ("llama", "mistral", "nemotron", "qwen2")
SHAPE = {"hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 3, "num_attention_heads": 4}


def student_of(teacher, dtype=torch.float32, shape=SHAPE):
    return build_student(teacher.prepared, teacher.architecture.reshaped(shape), dtype)


def exported(teacher, folder, prompt, dtype=torch.float32, lineage=None, student=None):
    student = student if student is not None else student_of(teacher)
    return export_student(student, teacher.checkpoint.path, folder, dtype, prompt[:1], lineage or Lineage())


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_student_loads_in_stock_transformers_with_the_same_logits_to_the_bit(
    source, prompt, tmp_path, model_type, tied
):
    teacher = source(model_type, tied=tied)
    student = student_of(teacher)
    proof = exported(teacher, tmp_path / "student", prompt, student=student)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=torch.float32)
    assert torch.equal(reloaded(prompt).logits, student(prompt).logits)
    assert proof == Proof(0.0, 1e-3)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_student_is_itself_a_checkpoint_to_prune_from(source, prompt, tmp_path, model_type, tied):
    teacher = source(model_type, tied=tied)
    exported(teacher, tmp_path / "student", prompt)
    assert open_checkpoint(tmp_path / "student").architecture == teacher.architecture.reshaped(SHAPE)
    assert ("lm_head.weight" in read_headers(tmp_path / "student")) is not tied


def test_a_student_that_nothing_was_cut_from_has_the_teachers_tensors(source, prompt, tmp_path):
    teacher = source("llama")
    exported(teacher, tmp_path / "student", prompt, student=student_of(teacher, shape={}))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student").state_dict()
    assert all(torch.equal(reloaded[name], tensor) for name, tensor in teacher.tensors.items())


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("trained_in", [torch.float32, torch.bfloat16])
def test_a_bfloat16_student_stays_bfloat16_with_no_difference_in_its_logits(
    source, prompt, tmp_path, model_type, trained_in
):
    teacher = source(model_type, dtype=torch.bfloat16)
    student = student_of(teacher, trained_in)
    proof = exported(teacher, tmp_path / "student", prompt, torch.bfloat16, student=student)
    assert {header.dtype for header in read_headers(tmp_path / "student").values()} == {"BF16"}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").dtype == torch.bfloat16
    assert proof.max_abs_difference == 0


def test_the_written_proof_can_be_repeated_by_anyone(source, prompt, tmp_path):
    exported(source("qwen2"), tmp_path / "student", prompt)
    proof = read_json(tmp_path / "student" / "proof.json")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=getattr(torch, proof["dtype"]))
    values, ids = model(torch.tensor(proof["input_ids"])).logits[0].topk(8, dim=-1)
    assert proof["input_ids"] == prompt[:1].tolist()
    assert (ids.tolist(), values.tolist()) == (proof["top_logit_ids"], proof["top_logits"])
    assert (proof["max_abs_difference"], proof["tolerance"]) == (0.0, 1e-3)


def test_lineage_is_written_as_given_with_the_proof_added(source, prompt, tmp_path):
    lineage = Lineage(size="90k", teacher=Origin(fingerprint="abc"), kept_layers=[0, 1, 3])
    exported(source("llama"), tmp_path / "student", prompt, lineage=lineage)
    assert read_lineage(tmp_path / "student") == replace(lineage, proof=Proof(0.0, 1e-3))


def test_tokenizer_templates_generation_settings_and_terms_come_from_the_source(source, prompt, tmp_path):
    folder = tiny_checkpoint(tmp_path / "teacher", "llama")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "plain {{ messages[0].content }}", "tool_use": "with tools"}
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"max_new_tokens": 7, "eos_token_id": [2, 0]}')
    terms = ("LICENSE.txt", "LICENSE", "NOTICE.txt", "USE_POLICY.md")
    for name in terms:
        (folder / name).write_text(f"As you like it: {name}.")
    (folder / "README.md").write_text("A card of the teacher, not of the student.")
    export_student(student_of(source("llama")), folder, tmp_path / "student", torch.float32, prompt[:1], Lineage())
    copied = AutoTokenizer.from_pretrained(tmp_path / "student")
    text = "Hello — the  world!"
    assert copied(text).input_ids == tokenizer(text).input_ids
    assert copied.chat_template == tokenizer.chat_template
    assert copied.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "plain hi"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert (model.generation_config.max_new_tokens, model.generation_config.eos_token_id) == (7, [2, 0])
    assert all((tmp_path / "student" / name).read_text() == f"As you like it: {name}." for name in terms)
    assert not (tmp_path / "student" / "README.md").exists()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_exported_student_generates_what_one_token_after_the_other_gives(source, prompt, tmp_path, model_type):
    exported(source(model_type), tmp_path / "student", prompt)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    ids = prompt[:1]
    generated = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    for _ in range(6):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(generated, ids)


def test_a_large_student_is_written_in_shards(source, prompt, tmp_path, monkeypatch):
    monkeypatch.setattr(stock_config, "_SHARD_SIZE", "60KB")
    teacher = source("llama")
    proof = exported(teacher, tmp_path / "student", prompt)
    assert len(list((tmp_path / "student").glob("model-*.safetensors"))) > 1
    assert (tmp_path / "student" / "model.safetensors.index.json").exists()
    assert proof.max_abs_difference == 0
    assert open_checkpoint(tmp_path / "student").architecture == teacher.architecture.reshaped(SHAPE)


def test_a_proof_that_fails_leaves_nothing(source, prompt, tmp_path, monkeypatch):
    teacher = source("llama")
    student = student_of(teacher, shape={})

    class OtherWeights:
        @staticmethod
        def from_pretrained(*args, **kwargs):
            return tiny_model(tiny_config("llama"), seed=1)

    monkeypatch.setattr(export, "AutoModelForCausalLM", OtherWeights)
    expected = (tiny_model(tiny_config("llama"), seed=1)(prompt[:1]).logits - student(prompt[:1]).logits).abs().max()
    message = (
        rf"student that was to be {tmp_path / 'student'} gives logits that differ by {expected.item():.3g} from the "
        r"model in memory \(at most 0\.001 is accepted\); it was not given its name"
    )
    with pytest.raises(ProofError, match=message):
        exported(teacher, tmp_path / "student", prompt, student=student)
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_no_numbers_prove_nothing(source, prompt, tmp_path):
    student = student_of(source("llama"))
    with torch.no_grad():
        student.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ProofError, match="differ by nan from the model in memory"):
        exported(source("llama"), tmp_path / "student", prompt, student=student)
    assert list(tmp_path.iterdir()) == []


def test_a_proof_that_fails_leaves_the_student_of_before(source, prompt, tmp_path):
    exported(source("llama"), tmp_path / "student", prompt)
    before = {name: (tmp_path / "student" / name).read_bytes() for name in files_below(tmp_path / "student")}
    student = student_of(source("llama"))
    with torch.no_grad():
        student.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ProofError):
        exported(source("llama"), tmp_path / "student", prompt, student=student)
    assert {name: (tmp_path / "student" / name).read_bytes() for name in files_below(tmp_path / "student")} == before


def test_the_same_student_is_the_same_bytes(source, prompt, tmp_path):
    for name in ("one", "two"):
        exported(source("llama"), tmp_path / name, prompt, lineage=Lineage(size="90k"))
    names = files_below(tmp_path / "one")
    assert names == files_below(tmp_path / "two")
    assert {"config.json", "model.safetensors", "proof.json", "lineage.json", "tokenizer.json"} <= set(names)
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_the_config_names_the_stock_class_and_no_path_of_this_machine(source, prompt, tmp_path):
    exported(source("mistral"), tmp_path / "student", prompt)
    text = (tmp_path / "student" / "config.json").read_text()
    assert json.loads(text)["architectures"] == ["MistralForCausalLM"]
    assert "auto_map" not in text
    assert str(tmp_path) not in text
