"""Every architecture of GGUF files that is read, written as llama.cpp's converter writes it."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_nas.errors import CheckpointError
from minitron_nas.models.gguf import convert_gguf
from minitron_nas.models.gguf_config import FAMILIES
from minitron_nas.storage.atomic import read_json
from minitron_nas.testing import tiny_config, tiny_model
from tests.models.test_gguf import ADD, add_tokenizer

FULL, SLIDING = "full_attention", "sliding_attention"
FACTORS = {"short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 2.0, 4.0, 8.0]}
IDS = torch.arange(3, 203).view(1, 200)
PLAIN = {"rope_type": "default", "rope_theta": 5e5}
LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
LONGROPE = {"rope_type": "longrope", **FACTORS, "rope_theta": 1e4, "partial_rotary_factor": 1.0}
RMS, LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
PARTLY = {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}
WINDOWS = {"sliding_window": 16, "query_pre_attn_scalar": 8}
CASES = {
    "qwen2": ({"rope_parameters": PLAIN}, {RMS: 1e-6, "rope.freq_base": 5e5}),
    "qwen3": (
        {"rope_parameters": LINEAR},
        {RMS: 1e-6, "rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "qwen3moe": (
        {"rope_parameters": PLAIN, "norm_topk_prob": True},
        {
            RMS: 1e-6,
            "rope.freq_base": 5e5,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 40,
        },
    ),
    "phi3": (
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64, "sliding_window": 32},
        {
            RMS: 1e-5,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(4) / np.log(64))),
            "attention.sliding_window": 32,
        },
    ),
    "gemma2": (
        {"rope_parameters": PLAIN, **WINDOWS, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
        {
            RMS: 1e-6,
            "rope.freq_base": 5e5,
            "attention.sliding_window": 16,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 10.0,
        },
    ),
    "gemma3": (
        {
            "rope_parameters": {FULL: LINEAR, SLIDING: {"rope_type": "default", "rope_theta": 2e4}},
            **WINDOWS,
            "layer_types": [SLIDING, FULL, SLIDING, FULL],
        },
        {
            RMS: 1e-6,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 2e4,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "attention.sliding_window": 16,
            "attention.sliding_window_pattern": 2,
        },
    ),
    "nemotron": (PARTLY | {"norm_eps": 1e-4}, {LAYER: 1e-4, "rope.freq_base": 5e5, "rope.dimension_count": 4}),
    "starcoder2": ({"rope_parameters": PLAIN, "norm_epsilon": 1e-4}, {LAYER: 1e-4, "rope.freq_base": 5e5}),
    "gpt2": ({"layer_norm_epsilon": 1e-4}, {LAYER: 1e-4}),
}


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path / "cache"))


def model_of(arch):
    model_type = FAMILIES[arch].model_type
    changes = {"n_inner": 96, "n_embd": 48, "n_layer": 4, "n_head": 6, "n_positions": 256} if arch == "gpt2" else {}
    return tiny_model(tiny_config(model_type, tied=arch.startswith("gemma"), **changes, **CASES[arch][0]))


def add_sentences(writer):
    """A vocabulary of sentencepiece, of single characters."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    tokens += [chr(number) for number in range(ord("a"), ord("z") + 1)]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([float(-number) for number in range(len(tokens))])
    writer.add_token_types([kinds.CONTROL] * 3 + [kinds.UNKNOWN] + [kinds.BYTE] * 256 + [kinds.NORMAL] * 27)
    for add, number in ((writer.add_pad_token_id, 0), (writer.add_eos_token_id, 1), (writer.add_bos_token_id, 2)):
        add(number)
    writer.add_unk_token_id(3)


def write(file, arch, model, **changes):
    config, writer = model.config, gguf.GGUFWriter(file, arch)
    sizes = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": 96,
        "attention.head_count": config.num_attention_heads,
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
    }
    if arch != "gpt2":
        sizes |= {"attention.head_count_kv": config.num_key_value_heads, "attention.key_length": config.head_dim}
    for key, value in {**sizes, **CASES[arch][1], **changes}.items():
        if value is not None:
            ADD[type(value)](writer, f"{arch}.{key}", value)
    if arch.startswith("gemma"):
        add_sentences(writer)
    else:
        add_tokenizer(writer, "smollm")
    for name, values in tensors_of(arch, model):
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def tensors_of(arch, model):
    (kind,) = [kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == arch]
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.endswith("experts.gate_up_proj"):
            layer = name.split(".")[2]
            for part, own in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
                yield f"blk.{layer}.ffn_{part}_exps.weight", own
            continue
        if name.endswith("experts.down_proj"):
            yield f"blk.{name.split('.')[2]}.ffn_down_exps.weight", values
            continue
        module, _, ending = name.rpartition(".")
        if arch in {"gemma2", "gemma3", "nemotron"} and name.endswith("norm.weight"):
            values = values + np.float32(1)
        if arch == "gpt2" and values.ndim == 2 and ".h." in name:
            values = values.T
        yield f"{names.get_name(module)}.{ending}", values
    if arch == "phi3":
        yield "rope_factors_short.weight", np.array(FACTORS["short_factor"], np.float32)
        yield "rope_factors_long.weight", np.array(FACTORS["long_factor"], np.float32)


@pytest.mark.parametrize("arch", CASES)
def test_a_file_of_each_architecture_computes_what_its_model_computes(tmp_path, arch):
    model = model_of(arch)
    folder = convert_gguf(write(tmp_path / "m.gguf", arch, model))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits
        expected = model(IDS).logits
    # What a converter added to the gains of norms is taken off again, which rounds.
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_every_architecture_is_tried():
    assert CASES.keys() | {"llama"} == FAMILIES.keys()


@pytest.mark.parametrize(
    ("arch", "keys", "named"),
    [
        ("qwen2", {"attention.sliding_window": 16}, r"qwen2\.attention\.sliding_window=16"),
        ("gemma3", {"attention.sliding_window": None}, r"no key gemma3\.attention\.sliding_window"),
        ("qwen3moe", {"expert_shared_count": 1}, r"qwen3moe\.expert_shared_count=1"),
        ("qwen3moe", {"expert_count": 5}, r"shape \(4, 40, 48\), not \(5, 40, 48\)"),
        ("starcoder2", {"attention.layer_norm_epsilon": None}, r"no key starcoder2\.attention\.layer_norm_epsilon"),
        ("phi3", {"attention.value_length": 4}, r"phi3\.attention\.value_length=4"),
    ],
)
def test_what_a_family_does_not_know_is_refused(tmp_path, arch, keys, named):
    with pytest.raises(CheckpointError, match=named):
        convert_gguf(write(tmp_path / "m.gguf", arch, model_of(arch), **keys))


def test_the_largest_gemma_scales_attention_by_the_width_of_its_stream(tmp_path):
    model = tiny_model(tiny_config("gemma2", tied=True, num_hidden_layers=46, **CASES["gemma2"][0]))
    config = read_json(convert_gguf(write(tmp_path / "m.gguf", "gemma2", model)) / "config.json")
    assert config["query_pre_attn_scalar"] == 48 // 6
    small = read_json(convert_gguf(write(tmp_path / "s.gguf", "gemma2", model_of("gemma2"))) / "config.json")
    assert small["query_pre_attn_scalar"] == small["head_dim"]
