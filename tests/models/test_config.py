import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, FineGrainedFP8Config

from minitron_nas.errors import CheckpointError, InvalidArchitectureError, TeacherNotFoundError, UnknownFamilyError
from minitron_nas.models.config import read_architecture, read_config, read_outline
from minitron_nas.models.source import resolve_teacher
from minitron_nas.models.stock import read_tensor
from minitron_nas.storage.weights import read_headers
from minitron_nas.testing import tiny_checkpoint, tiny_config
from minitron_nas.testing.tiny import TINY_E2B


def edited(folder, **changes):
    """Write `changes` into config.json (None removes a field) and return its new content."""
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return config


@pytest.fixture
def llama(tmp_path):
    return tiny_checkpoint(tmp_path / "llama", "llama")


def test_a_folder_that_is_absent_is_no_teacher(tmp_path):
    with pytest.raises(TeacherNotFoundError, match="absent is not a folder"):
        read_config(tmp_path / "absent")


def test_a_folder_needs_a_config(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json; give a folder that save_pretrained wrote"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "is not JSON"),
        ("[]", "a JSON list, not an object"),
        ("", "is empty"),
        ("[" * 100_000, "nests deeper than 64 levels"),
        ('{"a":' * 65 + "1" + "}" * 65, "nests deeper than 64 levels"),
        ("1" * 5000, "is not JSON"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer.*git lfs pull"),
        ("\n<!doctype html><html>", "is a web page; download the file itself"),
        ("Repository not found", "is what a server says of a file that it does not give"),
    ],
)
def test_a_config_is_a_json_object(tmp_path, text, fault):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=fault):
        read_config(tmp_path)


@pytest.mark.parametrize(("model_type", "name"), [("bert", "BertForMaskedLM"), ("t5", "T5ForConditionalGeneration")])
def test_a_model_of_another_task_is_refused_by_name(llama, model_type, name):
    config = edited(llama, model_type=model_type, architectures=[name])
    with pytest.raises(CheckpointError, match=f"holds a {name}, which is no causal language model"):
        read_architecture(llama, config)


def test_an_unknown_causal_family_is_refused_with_the_known_ones(llama):
    config = edited(llama, model_type="bloom", architectures=["BloomForCausalLM"])
    with pytest.raises(UnknownFamilyError, match="'bloom' is no known family; .*`minitron-nas ls families` lists"):
        read_architecture(llama, config)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_a_quantised_model_is_refused_by_name(llama, method):
    config = edited(llama, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(
        CheckpointError, match=rf"\(quant_method '{method}'\); .* dequantise it in transformers"
    ) as told:
        read_architecture(llama, config)
    assert "dequantize=True" not in str(told.value)


@pytest.mark.parametrize(("method", "settings"), [("mxfp4", "Mxfp4Config"), ("fp8", "FineGrainedFP8Config")])
def test_what_transformers_dequantises_is_refused_with_how(llama, method, settings):
    config = edited(llama, quantization_config={"quant_method": method})
    with pytest.raises(CheckpointError, match=rf"quant_method '{method}'.*{settings}\(dequantize=True\)\) turns it"):
        read_architecture(llama, config)


def test_a_model_in_fp8_is_taken_as_transformers_dequantises_it(tmp_path):
    folder = tiny_checkpoint(
        tmp_path / "model",
        "llama",
        num_hidden_layers=1,
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
    stored, plain = load_file(folder / "model.safetensors"), {}
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        matrix = stored[name].float()
        scales = matrix.unfold(0, min(128, len(matrix)), 128).unfold(1, 128, 128).abs().amax(dim=(2, 3)) / 448
        spread = scales.repeat_interleave(128, 0)[: len(matrix)].repeat_interleave(128, 1)
        stored[name], stored[f"{name}_scale_inv"] = (matrix / spread).to(torch.float8_e4m3fn), scales
        plain[name] = stored[name].float() * spread
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    packing = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"}
    edited(folder, quantization_config=packing)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=FineGrainedFP8Config(dequantize=True)
    )
    taken = resolve_teacher((model, AutoTokenizer.from_pretrained(folder)), tmp_path / "work")
    written = {name: read_tensor(header) for name, header in read_headers(taken.path).items()}
    assert plain.keys() <= written.keys()
    assert all(torch.equal(written[name], matrix.bfloat16()) for name, matrix in plain.items())


def test_a_shape_that_transformers_refuses_is_refused_with_its_reason(llama):
    config = edited(llama, num_attention_heads=7)
    with pytest.raises(CheckpointError, match=r"hidden size .48. is not a multiple of the number of attention heads"):
        read_architecture(llama, config)


def test_left_out_fields_take_the_defaults_of_transformers_and_not_ours(tmp_path):
    folder = tiny_checkpoint(tmp_path / "mistral", "mistral")
    config = edited(folder, num_key_value_heads=None, num_attention_heads=24, head_dim=None)
    architecture, _ = read_architecture(folder, config)
    assert architecture.num_key_value_heads == 8  # MistralConfig's default; a plain reading would say 24
    assert architecture.head_dim == 2


def test_a_config_without_class_names_is_accepted(llama):
    architecture, layout = read_architecture(llama, edited(llama, architectures=None))
    assert (architecture.hidden_size, layout.model_type) == (48, "llama")


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (
            ["adapter_config.json"],
            r"holds an adapter \(LoRA or another of PEFT\) without its base model; merge",
        ),
        (["model-Q8_0.gguf"], r"holds GGUF files \(model-Q8_0\.gguf\)"),
        (["checkpoint-10/config.json", "checkpoint-20/config.json"], r"\(checkpoint-10, checkpoint-20\); give one"),
        (["model.safetensors"], r"holds model\.safetensors, but no config\.json"),
        (["model.pth"], r"no safetensors weights, but model\.pth"),
    ],
)
def test_a_folder_without_a_config_is_refused_by_what_it_holds(tmp_path, names, fault):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=fault):
        read_config(tmp_path)


SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")


def test_a_size_that_no_tensor_has_is_refused_before_anything_is_made_of_it(llama):
    config = json.loads((llama / "config.json").read_text())
    for key in ("num_hidden_layers", *SIZES):
        for value in (0, -1, 10**12, 1.5, "48", True, [48], {}):
            fault = rf"config\.json: {key}=.* must (lie in 1\.\.\d+ by|be an integer)"
            with pytest.raises(CheckpointError, match=fault):
                read_architecture(llama, config | {key: value})


@pytest.mark.parametrize(
    ("model_type", "key"),
    [("gpt2", "n_positions"), ("gpt2", "n_embd"), ("qwen3_moe", "num_experts"), ("mixtral", "num_local_experts")],
)
def test_sizes_are_found_under_the_names_of_their_family(tmp_path, model_type, key):
    folder = tiny_checkpoint(tmp_path / "model", model_type)
    with pytest.raises(CheckpointError, match=f"{key}=1000000000000 must lie in"):
        read_architecture(folder, edited(folder, **{key: 10**12}))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 10**12},
        {"architectures": 5},
        {"architectures": [None]},
        {"rope_parameters": "x"},
        {"rope_parameters": [1]},
        {"layer_types": ["full_attention"] * 9, "model_type": "qwen2"},
        {"hidden_act": []},
        {"id2label": 3},
        {"dtype": "float33"},
    ],
)
def test_odd_values_are_refused_or_have_no_effect(llama, changes):
    config = edited(llama, **changes)
    try:
        architecture, _ = read_architecture(llama, config)
    except (CheckpointError, UnknownFamilyError):
        return
    assert architecture.hidden_size == 48


@pytest.mark.parametrize(("key", "value"), [("mamba_d_ssm", 10**12), ("mamba_d_ssm", 0), ("mamba_n_heads", 10**12)])
def test_a_size_that_another_follows_from_is_held_against_the_weights(tmp_path, key, value):
    folder = tiny_checkpoint(tmp_path / "model", "falcon_h1")
    with pytest.raises(CheckpointError, match=f"{key}={value} must lie in"):
        read_architecture(folder, edited(folder, mamba_d_head="auto", **{key: value}))


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [("falcon_h1", {}), ("falcon_h1", {"mamba_d_ssm": None, "mamba_expand": 1}), ("granitemoehybrid", {})],
)
def test_a_size_that_is_left_to_transformers_is_what_it_makes_of_it(tmp_path, model_type, changes):
    folder = tiny_checkpoint(tmp_path / "model", model_type, **changes)
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"mamba_d_head": 8', '"mamba_d_head": "auto"'))
    assert read_config(folder)["mamba_d_head"] == "auto"
    assert read_architecture(folder, read_config(folder))[0].mamba_head_dim == 8


def test_latents_that_transformers_cannot_multiply_are_refused_with_the_reason(tmp_path):
    kinds = ["linear_attention", "full_attention", "moe"]
    folder = tiny_checkpoint(tmp_path, "nemotron_h", layers_block_type=kinds, moe_latent_size=20)
    with pytest.raises(InvalidArchitectureError, match="moe_latent_size=20 is no multiple of 8: .* fill 16 bytes"):
        read_architecture(folder, read_config(folder))


def test_a_model_with_an_adapter_beside_it_is_refused_with_both(llama):
    (llama / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "owner/base"}')
    with pytest.raises(CheckpointError, match=r"a model and an adapter \(adapter_config\.json\); .* merge them"):
        read_architecture(llama, read_config(llama))


@pytest.mark.parametrize(
    "changes", [{"transformers_weights": "other.safetensors"}, {"configuration_files": ["config.4.0.0.json"]}]
)
def test_a_config_that_names_other_files_is_refused(llama, changes):
    with pytest.raises(CheckpointError, match=f"{next(iter(changes))}=.*save it again"):
        read_architecture(llama, edited(llama, **changes))


def test_a_size_of_tensors_that_a_model_lacks_is_not_held_against_its_weights(tmp_path):
    folder = tiny_checkpoint(tmp_path / "without", "gemma4_text")
    shape, _ = read_architecture(folder, {**read_config(folder), "vocab_size_per_layer_input": 262144})
    assert not {"hidden_size_per_layer_input", "vocab_size_per_layer_input"} & {*shape.fixed_sizes}
    folder = tiny_checkpoint(tmp_path / "with", "gemma4_text", **TINY_E2B)
    assert read_architecture(folder, read_config(folder))[0].fixed_sizes["vocab_size_per_layer_input"] == 320
    with pytest.raises(CheckpointError, match="vocab_size_per_layer_input=262144 must lie in"):
        read_architecture(folder, edited(folder, vocab_size_per_layer_input=262144))
    with pytest.raises(CheckpointError, match="hidden_size_per_layer_input=-1 must lie in"):
        read_architecture(folder, edited(folder, hidden_size_per_layer_input=-1, vocab_size_per_layer_input=320))


def test_a_model_whose_layers_all_read_keys_of_another_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "gemma4_text", **TINY_E2B)
    with pytest.raises(InvalidArchitectureError, match="'full_attention' have no keys and values of their own"):
        read_architecture(folder, edited(folder, num_kv_shared_layers=7))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"hidden_size_per_layer_input": 0},
            "num_kv_shared_layers=3 with hidden_size_per_layer_input=0: .* at least 1, or num_kv_shared_layers 0",
        ),
        (
            {"vocab_size_per_layer_input": 100},
            "vocab_size_per_layer_input=100 is below vocab_size=320: .* must be at least 320",
        ),
    ],
)
def test_layers_that_transformers_cannot_run_for_want_of_embeddings_are_refused(tmp_path, changes, said):
    folder = tmp_path / "model"
    tiny_config("gemma4_text", **{**TINY_E2B, **changes}).save_pretrained(folder)
    with pytest.raises(InvalidArchitectureError, match=said):
        read_outline(folder, folder)
