import json

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_nas.errors import CheckpointError, TeacherNotFoundError, UnknownFamilyError
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.gguf import convert_gguf
from minitron_nas.testing import tiny_config, tiny_model, tiny_tokenizer

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_hidden_layers": 2}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_gguf(file, model, kind=gguf.GGMLQuantizationType.F32, pre="smollm", arch="llama"):
    """Write a llama model and the tiny tokenizer as llama.cpp's converter does."""
    config = model.config
    writer = gguf.GGUFWriter(file, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer, pre)
    for name, tensor in model.state_dict().items():
        add_tensor(writer, name, tensor.numpy(), config, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_tokenizer(writer, pre):
    tokenizer = tiny_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t.startswith("<|") else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def add_tensor(writer, name, values, config, kind):
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for projection, num_heads in heads.items():
        if projection in name:  # llama.cpp interleaves the two halves of every rotary head
            rows = values.reshape(num_heads, 2, -1, values.shape[1])
            values = np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)
    for given, written in NAMES.items():
        name = name.replace(given, written)
    if values.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


@pytest.fixture
def model():
    return tiny_model(tiny_config("llama", **SIZES))


def test_a_plain_gguf_file_becomes_a_stock_folder_with_the_same_logits_to_the_bit(tmp_path, model):
    folder = convert_gguf(write_gguf(tmp_path / "tiny.gguf", model))
    ids = torch.arange(40).view(2, 20)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, model(ids).logits)
    assert open_checkpoint(folder).num_parameters == model.num_parameters()


def test_quantised_weights_are_stored_as_bfloat16_within_the_quantisation_error(tmp_path, model):
    file = write_gguf(tmp_path / "tiny.Q8_0.gguf", model, gguf.GGMLQuantizationType.Q8_0)
    converted = AutoModelForCausalLM.from_pretrained(convert_gguf(file))
    assert converted.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        # Q8_0 rounds to 1/127 of a block's largest value, bfloat16 to 1/256 of each value.
        allowed = tensor.abs().max() * (0.5 / 127 + 1 / 256)
        assert (converted.state_dict()[name].float() - tensor).abs().max() <= allowed


def test_the_written_config_knows_nothing_of_gguf(tmp_path, model):
    file = write_gguf(tmp_path / "tiny.gguf", model, gguf.GGMLQuantizationType.Q8_0)
    text = (convert_gguf(file) / "config.json").read_text()
    config = json.loads(text)
    assert "gguf" not in text
    assert [key for key in config if key.startswith("_") or "quant" in key] == []
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_the_tokenizer_and_its_special_tokens_survive(tmp_path, model):
    tokenizer = AutoTokenizer.from_pretrained(convert_gguf(write_gguf(tmp_path / "tiny.gguf", model)))
    expected = tiny_tokenizer()
    text = "Hello — the tenth\n\tété 日本 <|im_end|>"
    assert tokenizer(text).input_ids == expected(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.chat_template == expected.chat_template


@pytest.mark.parametrize(("pre", "pieces"), [("smollm", ["ab", "  ", "1", "2"]), ("gpt-2", ["ab", " ", " 12"])])
def test_numbers_are_split_into_digits_where_the_vocabulary_was_learned_so(tmp_path, model, pre, pieces):
    folder = convert_gguf(write_gguf(tmp_path / "tiny.gguf", model, pre=pre))
    splitter = AutoTokenizer.from_pretrained(folder).backend_tokenizer.pre_tokenizer
    assert [piece.replace("Ġ", " ") for piece, _ in splitter.pre_tokenize_str("ab  12")] == pieces


def test_the_same_content_is_converted_once_whatever_its_folder(tmp_path, model):
    first = convert_gguf(write_gguf(tmp_path / "tiny.gguf", model))
    written = (first / "config.json").stat().st_mtime_ns
    (tmp_path / "other").mkdir()
    (tmp_path / "tiny.gguf").rename(tmp_path / "other" / "tiny.gguf")
    assert convert_gguf(tmp_path / "other" / "tiny.gguf") == first
    assert (first / "config.json").stat().st_mtime_ns == written


def test_a_file_that_is_absent_is_no_teacher(tmp_path):
    with pytest.raises(TeacherNotFoundError, match=r"absent\.gguf does not exist"):
        convert_gguf(tmp_path / "absent.gguf")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.gguf is not a GGUF file"):
        convert_gguf(tmp_path / "text.gguf")


@pytest.mark.parametrize("kept_fraction", [0.01, 0.9])
def test_a_file_that_is_cut_short_is_refused_and_leaves_nothing(tmp_path, cache, model, kept_fraction):
    file = write_gguf(tmp_path / "tiny.gguf", model)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept_fraction)])
    with pytest.raises(CheckpointError, match=r"tiny\.gguf cannot be read as a model .*download it again"):
        convert_gguf(file)
    assert [path for path in (cache / "gguf").iterdir() if not path.name.startswith(".")] == []


def test_a_gguf_file_of_an_unknown_family_is_refused(tmp_path, model):
    file = write_gguf(tmp_path / "tiny.gguf", model, arch="falcon")
    with pytest.raises(UnknownFamilyError, match="model type 'falcon' is no known family"):
        convert_gguf(file)
