import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken

from minitron_nas.errors import CheckpointError
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.testing import rewrite_tensors, tiny_checkpoint, tiny_tokenizer

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def llama(tmp_path):
    return tiny_checkpoint(tmp_path / "llama", "llama")


def test_a_missing_tensor_is_named_with_its_shape(llama):
    rewrite_tensors(llama, {UP: None})
    with pytest.raises(CheckpointError, match=rf"tensor '{UP}' of shape \(96, 48\) is missing"):
        open_checkpoint(llama)


def test_a_tensor_outside_the_table_is_named(llama):
    rewrite_tensors(llama, {"model.layers.0.adapter.weight": torch.ones(3)})
    with pytest.raises(
        CheckpointError,
        match=r"'model.layers.0.adapter.weight' of shape \(3,\) is not in the table of family 'llama'",
    ):
        open_checkpoint(llama)


def test_a_wrong_shape_is_shown_beside_the_right_one(llama):
    rewrite_tensors(llama, {UP: torch.ones(96, 40)})
    with pytest.raises(CheckpointError, match=rf"'{UP}' has shape \(96, 40\), its config asks for \(96, 48\)"):
        open_checkpoint(llama)


def test_many_faults_are_counted_and_three_are_shown(llama):
    rewrite_tensors(llama, {f"extra.{index}": torch.ones(1) for index in range(5)})
    with pytest.raises(CheckpointError, match=r"'extra\.0' .*'extra\.1' .*'extra\.2' .*; and 2 more$"):
        open_checkpoint(llama)


def test_a_layer_beyond_the_config_is_refused(llama):
    rewrite_tensors(llama, {"model.layers.4.input_layernorm.weight": torch.ones(48)})
    with pytest.raises(CheckpointError, match=r"'model.layers.4.input_layernorm.weight'"):
        open_checkpoint(llama)


def test_a_tensor_of_integers_is_refused(llama):
    rewrite_tensors(llama, {UP: torch.ones(96, 48, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=f"'{UP}' is stored as I8, not as floating point"):
        open_checkpoint(llama)


def test_tensors_that_transformers_drops_are_skipped(llama):
    rewrite_tensors(llama, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert open_checkpoint(llama).architecture.num_hidden_layers == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_found(llama, value):
    broken = torch.ones(96, 48)
    broken[5, 7] = value
    rewrite_tensors(llama, {UP: broken})
    with pytest.raises(CheckpointError, match=f"tensor '{UP}' holds NaN or infinity"):
        open_checkpoint(llama)


def test_values_are_not_read_when_they_are_not_asked_for(llama):
    rewrite_tensors(llama, {UP: torch.full((96, 48), float("nan"))})
    assert open_checkpoint(llama, read_values=False).layout.model_type == "llama"


def test_progress_counts_every_byte_once(llama):
    calls = []
    checkpoint = open_checkpoint(llama, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) == 39  # 4 layers of 9 tensors, and 3 outside
    assert sorted(calls) == calls
    assert calls[-1] == (4 * checkpoint.num_parameters, 4 * checkpoint.num_parameters)


def test_a_tied_model_may_carry_a_copy_of_its_embedding(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tied", "llama", tied=True)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite_tensors(folder, {"lm_head.weight": embedding.clone()})
    assert open_checkpoint(folder).num_parameters == 95_664


def test_a_tied_model_whose_output_differs_from_the_embedding_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tied", "llama", tied=True)
    rewrite_tensors(folder, {"lm_head.weight": torch.ones(320, 48)})
    with pytest.raises(CheckpointError, match=r"ties 'lm_head.weight' to the embedding, but the two tensors differ"):
        open_checkpoint(folder)


@pytest.mark.parametrize("other", [torch.float32, torch.float64, torch.bfloat16])
def test_a_copy_of_the_embedding_is_compared_by_its_values_whatever_their_type(tmp_path, other):
    folder = tiny_checkpoint(tmp_path / "tied", "llama", tied=True, dtype=torch.bfloat16)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite_tensors(folder, {"lm_head.weight": embedding.to(other)})
    assert open_checkpoint(folder).num_parameters == 95_664


def test_a_copy_that_is_finer_than_the_embedding_is_another_tensor(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tied", "llama", tied=True, dtype=torch.bfloat16)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].float()
    rewrite_tensors(folder, {"lm_head.weight": embedding * (1 + 2**-12)})
    with pytest.raises(CheckpointError, match=r"ties 'lm_head.weight' to the embedding, but the two tensors differ"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("rename", "fault"),
    [
        (lambda name: f"_orig_mod.{name}", r"that torch\.compile gives them \(with _orig_mod\.\)"),
        (lambda name: f"module.{name}", r"a distributed wrapper .* \(with module\.\)"),
        (lambda name: f"module._orig_mod.{name}", r"torch\.compile and a distributed wrapper"),
        (lambda name: f"_fsdp_wrapped_module.{name}", "names that FSDP gives"),
        (lambda name: name.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"), "activation checkpointing"),
        (lambda name: f"base_model.model.{name}.lora_A.weight", r"tensors of an adapter \(LoRA\); merge it"),
    ],
)
def test_names_that_a_wrapper_has_changed_are_told_with_the_wrapper(llama, rename, fault):
    tensors = load_file(llama / "model.safetensors")
    rewrite_tensors(llama, dict.fromkeys(tensors) | {rename(name): tensor for name, tensor in tensors.items()})
    with pytest.raises(CheckpointError, match=fault):
        open_checkpoint(llama)


def test_a_tokenizer_file_that_nests_without_end_is_refused(llama):
    (llama / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="has no tokenizer that transformers can load"):
        open_checkpoint(llama)


def test_a_file_that_is_cut_short_is_refused(llama):
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is cut short"):
        open_checkpoint(llama)


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(llama):
    tiny_tokenizer(330).save_pretrained(llama)
    with pytest.raises(CheckpointError, match="the tokenizer has 330 ordinary ids, but vocab_size=320"):
        open_checkpoint(llama)


@pytest.mark.parametrize("special", [True, False])
def test_only_special_tokens_that_were_added_may_lie_beyond_the_vocabulary(llama, special):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(AddedToken("<image_soft_token>", special=special))
    tokenizer.save_pretrained(llama)
    if special:
        assert open_checkpoint(llama).architecture.vocab_size == 320
    else:
        with pytest.raises(CheckpointError, match="the tokenizer has 321 ordinary ids, but vocab_size=320"):
            open_checkpoint(llama)


def test_a_padded_vocabulary_is_accepted(llama):
    tiny_tokenizer(300).save_pretrained(llama)
    assert open_checkpoint(llama).architecture.vocab_size == 320


@pytest.mark.parametrize("model_type", ["llama", "mistral", "nemotron", "qwen2"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, model_type):
    folder = tiny_checkpoint(tmp_path / "model", model_type)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"merges": [["a", "b", "c"]]},
        {"merges": [["no such", "tokens"]]},
        {"type": "of another version"},
        {"vocab": [1, 2]},
        {"vocab": {"a": -1}},
    ],
)
def test_a_tokenizer_that_the_tokenizers_library_refuses_is_refused_in_one_line(llama, change):
    content = json.loads((llama / "tokenizer.json").read_text())
    content["model"] |= change
    (llama / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"has no tokenizer that transformers can load: .*") as refusal:
        open_checkpoint(llama)
    assert "\n" not in str(refusal.value)
