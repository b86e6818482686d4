import json

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_nas.errors import CheckpointError, TeacherNotFoundError, UnknownFamilyError
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.gguf import convert_gguf
from minitron_nas.models.source import resolve_teacher
from minitron_nas.storage.atomic import read_json
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


ADD = {
    int: gguf.GGUFWriter.add_uint32,
    float: gguf.GGUFWriter.add_float32,
    str: gguf.GGUFWriter.add_string,
    bool: gguf.GGUFWriter.add_bool,
    list: gguf.GGUFWriter.add_array,
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_gguf(file, model, kind=gguf.GGMLQuantizationType.F32, pre="smollm", arch="llama", **changes):
    """Write a llama model and the tiny tokenizer as llama.cpp's converter does.

    `keys` of the architecture and `tensors` are added or, with None, left out; `only` names the tensors to write.
    """
    config, keys = model.config, changes.get("keys", {})
    writer = gguf.GGUFWriter(file, arch)
    if "kind_of_file" in changes:
        writer.add_type(changes["kind_of_file"])
    said = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "vocab_size": config.vocab_size,
    }
    for key, value in (
        {f"{arch}.{key}": value for key, value in {**said, **keys}.items()} | changes.get("split", {})
    ).items():
        if value is not None:
            ADD[type(value)](writer, key, value)
    add_tokenizer(writer, pre)
    tensors = changes.get("tensors", {})
    for name, tensor in model.state_dict().items():
        if gguf_name(name) not in tensors and name in changes.get("only", model.state_dict()):
            add_tensor(writer, name, tensor.numpy(), config, kind)
    for name, values in tensors.items():
        if values is not None:
            writer.add_tensor(name, values)
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
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t.startswith("<|") else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def gguf_name(name):
    for given, written in NAMES.items():
        name = name.replace(given, written)
    return name


def add_tensor(writer, name, values, config, kind):
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for projection, num_heads in heads.items():
        if projection in name:  # llama.cpp interleaves the two halves of every rotary head
            rows = values.reshape(num_heads, 2, -1, *values.shape[1:])
            values = np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)
    name = gguf_name(name)
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
    assert words(AutoTokenizer.from_pretrained(folder), "ab  12") == pieces


def words(tokenizer, text):
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in pieces]


@pytest.mark.parametrize("pre", ["qwen9", "default", None])
def test_how_text_falls_into_words_is_known_or_refused(tmp_path, cache, model, pre):
    said = f"says tokenizer.ggml.pre='{pre}'" if pre else r"has no key tokenizer\.ggml\.pre"
    with pytest.raises(
        CheckpointError, match=rf"tiny\.gguf {said}, .*known: a\.x-4\.0, .*, qwen2, .*; give a safetensors"
    ):
        convert_gguf(write_gguf(tmp_path / "tiny.gguf", model, pre=pre))
    assert not list(cache.rglob("config.json"))


def test_a_gguf_file_is_known_by_its_beginning_and_not_by_its_name(tmp_path, model):
    blob = write_gguf(tmp_path / "3f5a", model)
    assert open_checkpoint(convert_gguf(blob)).num_parameters == model.num_parameters()
    assert resolve_teacher(blob, tmp_path, compare=False).num_parameters == model.num_parameters()


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


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
IDS = torch.arange(200).view(1, 200)


def llama3_divisors():
    rotary = tiny_model(tiny_config("llama", **SIZES)).model.rotary_emb
    scaled = tiny_model(tiny_config("llama", **SIZES, rope_parameters=rope("llama3", LLAMA3))).model.rotary_emb
    return (rotary.inv_freq / scaled.inv_freq).numpy()


def rope(kind, more):
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


def logits_of(folder):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


def same_as(model, folder):
    with torch.no_grad():
        return torch.equal(logits_of(folder), model(IDS).logits)


def test_a_file_of_llama_3_keeps_the_scaling_that_lies_in_a_tensor(tmp_path):
    model = tiny_model(tiny_config("llama", **SIZES, rope_parameters=rope("llama3", LLAMA3)))
    folder = convert_gguf(write_gguf(tmp_path / "m.gguf", model, tensors={"rope_freqs.weight": llama3_divisors()}))
    assert read_json(folder / "config.json")["rope_scaling"] == {"rope_type": "llama3", "type": "llama3", **LLAMA3}
    assert same_as(model, folder)


@pytest.mark.parametrize(("divisors", "kind"), [([1.0, 1.0, 1.0, 1.0], "default"), ([4.0, 4.0, 4.0, 4.0], "linear")])
def test_equal_factors_are_no_scaling_or_one_for_all(tmp_path, model, divisors, kind):
    tensors = {"rope_freqs.weight": np.array(divisors, np.float32)}
    folder = convert_gguf(write_gguf(tmp_path / "m.gguf", model, tensors=tensors))
    assert read_json(folder / "config.json")["rope_parameters"]["rope_type"] == kind


@pytest.mark.parametrize(
    ("keys", "kind", "more"),
    [
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, "default", {}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, "linear", {"factor": 4.0}),
        ({"rope.scale_linear": 2.0}, "linear", {"factor": 2.0}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
            "yarn",
            YARN,
        ),
    ],
)
def test_rope_scaling_in_keys_is_kept(tmp_path, keys, kind, more):
    model = tiny_model(tiny_config("llama", **SIZES, rope_parameters=rope(kind, more)))
    assert same_as(model, convert_gguf(write_gguf(tmp_path / "m.gguf", model, keys=keys)))


def test_biases_are_kept(tmp_path):
    model = tiny_model(tiny_config("llama", **SIZES, attention_bias=True, mlp_bias=True))
    assert same_as(model, convert_gguf(write_gguf(tmp_path / "m.gguf", model)))


def test_a_split_file_is_read_whole_whichever_part_is_given(tmp_path, model):
    parts = split(tmp_path, model)
    folder = convert_gguf(parts[1])
    assert same_as(model, folder)
    assert convert_gguf(parts[0]) == folder


def test_a_part_without_the_others_is_refused_by_name(tmp_path, model):
    first, second = split(tmp_path, model)
    second.unlink()
    with pytest.raises(TeacherNotFoundError, match=r"m-00002-of-00002\.gguf does not exist"):
        convert_gguf(first)
    alone = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError, match=r"renamed\.gguf is one of 2 parts of a model \(split\.count\)"):
        convert_gguf(alone)


def test_a_tied_model_stays_tied_and_a_padded_vocabulary_padded(tmp_path):
    model = tiny_model(tiny_config("llama", **SIZES, tied=True, vocab_size=352))
    folder = convert_gguf(write_gguf(tmp_path / "m.gguf", model))
    assert same_as(model, folder)
    assert open_checkpoint(folder).architecture.vocab_size == 352


def test_the_tokens_that_begin_and_end_a_text_are_those_of_the_file(tmp_path, model):
    folder = convert_gguf(write_gguf(tmp_path / "m.gguf", model))
    for file in ("config.json", "generation_config.json"):
        content = read_json(folder / file)
        assert (content["bos_token_id"], content["eos_token_id"], content["pad_token_id"]) == (1, 2, 2)


def test_conversion_says_how_far_it_is(tmp_path, model):
    told = []
    convert_gguf(write_gguf(tmp_path / "m.gguf", model), lambda *step: told.append(step))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1][0] == told[-1][1] == sum(4 * p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"expert_count": 8}, r"llama\.expert_count=8"),
        ({"attention.sliding_window": 16}, r"llama\.attention\.sliding_window=16"),
        ({"logit_scale": 0.5}, r"llama\.logit_scale=0\.5"),
        ({"rope.dimension_count": 4}, r"llama\.rope\.dimension_count=4"),
        ({"attention.value_length": 16}, r"llama\.attention\.value_length=16"),
        ({"attention.causal": False}, r"llama\.attention\.causal=False"),
        ({"rope.scaling.type": "longrope"}, r"rope\.scaling\.type='longrope'"),
        ({"something.new": 3}, r"llama\.something\.new=3"),
        ({"vocab_size": 300}, r"token_embd\.weight has 320 rows"),
        ({"attention.head_count_kv": [2, 1]}, r"llama\.attention\.head_count_kv=\[2, 1\]"),
        ({"attention.layer_norm_rms_epsilon": None}, r"no key llama\.attention\.layer_norm_rms_epsilon"),
    ],
)
def test_a_key_that_nothing_reads_is_named(tmp_path, cache, model, keys, named):
    with pytest.raises(CheckpointError, match=named):
        convert_gguf(write_gguf(tmp_path / "m.gguf", model, keys=keys))
    assert [path for path in (cache / "gguf").iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "keys",
    [{"expert_count": 0, "expert_used_count": 0}, {"attention.causal": True}, {"rope.scaling.finetuned": False}],
)
def test_a_key_that_says_nothing_is_passed_over(tmp_path, model, keys):
    assert same_as(model, convert_gguf(write_gguf(tmp_path / "m.gguf", model, keys=keys)))


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"blk.0.attn_sinks.weight": np.ones(8, np.float32)}, r"tensor 'blk\.0\.attn_sinks\.weight' has no place"),
        ({"blk.2.attn_q.weight": np.ones((64, 64), np.float32)}, r"tensor 'blk\.2\.attn_q\.weight' has no place"),
        ({"blk.1.ffn_up.weight": None}, r"tensor 'blk\.1\.ffn_up\.weight' of shape \(96, 64\) is missing"),
        ({"output_norm.weight": None}, r"tensor 'output_norm\.weight' of shape \(64,\) is missing"),
        ({"blk.0.attn_q.bias": np.ones(64, np.float32)}, r"tensor 'blk\.0\.attn_k\.bias' of shape .* is missing"),
        ({"output.weight": np.ones((300, 64), np.float32)}, r"'output\.weight' has shape \(300, 64\), not \(320, 64\)"),
        ({"rope_freqs.weight": np.array([1, 2, 1, 9], np.float32)}, r"the tensor rope_freqs\.weight, whose 4 factors"),
        ({"rope_freqs.weight": np.ones(7, np.float32)}, r"rope_freqs\.weight with 7 factors, where 4"),
    ],
)
def test_a_tensor_too_many_or_too_few_is_named(tmp_path, model, tensors, named):
    with pytest.raises(CheckpointError, match=named):
        convert_gguf(write_gguf(tmp_path / "m.gguf", model, tensors=tensors))


def test_an_adapter_is_no_model(tmp_path, model):
    with pytest.raises(CheckpointError, match="holds a GGUF adapter, not a model"):
        convert_gguf(write_gguf(tmp_path / "m.gguf", model, kind_of_file="adapter"))


def split(folder, model):
    second = [name for name in model.state_dict() if "layers.1" in name or "lm_head" in name]
    first = [name for name in model.state_dict() if name not in second]
    keys = [{"split.no": number, "split.count": 2} for number in range(2)]
    return [
        write_gguf(folder / f"m-0000{n + 1}-of-00002.gguf", model, split=keys[n], only=names)
        for n, names in enumerate((first, second))
    ]
