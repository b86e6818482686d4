import json

import pytest

from minitron_nas.errors import CheckpointError, TeacherNotFoundError, UnknownFamilyError
from minitron_nas.models.config import read_architecture, read_config
from minitron_nas.testing import tiny_checkpoint


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


@pytest.mark.parametrize(("text", "fault"), [("{", "is not JSON"), ("[]", "a JSON list, not an object")])
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
    with pytest.raises(UnknownFamilyError, match="'bloom' is no known family; known: gemma2, gemma3"):
        read_architecture(llama, config)


def test_a_quantised_model_is_refused(llama):
    config = edited(llama, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match=r"holds a quantised model; .* dequantise it in transformers"):
        read_architecture(llama, config)


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
