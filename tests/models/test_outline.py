"""What is known of a teacher before any weight is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import CheckpointError, PlanError, TeacherNotFoundError
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.outline import Outline
from minitron_nas.models.source import outline_teacher
from minitron_nas.testing import tiny_config

NEMO = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "num_hidden_layers": 40,
    "hidden_size": 5120,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 131072,
    "torch_dtype": "bfloat16",
}


def write_config(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**NEMO, **changes}))
    return folder


def test_a_config_alone_is_enough(tmp_path: Path) -> None:
    outline = outline_teacher(write_config(tmp_path / "nemo"), tmp_path)
    assert outline.num_parameters == 12_247_782_400
    assert (outline.weights_bytes, outline.companions_bytes) == (2 * 12_247_782_400, 0)
    wide = outline_teacher(write_config(tmp_path / "wide", torch_dtype="float32"), tmp_path)
    assert wide.weights_bytes == 4 * 12_247_782_400


def test_a_folder_with_weights_is_checked_and_weighed(trained_teacher: Path, tmp_path: Path) -> None:
    outline, checkpoint = outline_teacher(trained_teacher, tmp_path), open_checkpoint(trained_teacher)
    assert (outline.architecture, outline.path) == (checkpoint.architecture, trained_teacher)
    assert outline.weights_bytes == 4 * outline.num_parameters
    assert outline.companions_bytes == sum(
        file.stat().st_size for file in trained_teacher.iterdir() if file.suffix != ".safetensors"
    )
    damaged = shutil.copytree(trained_teacher, tmp_path / "damaged")
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(CheckpointError):
        outline_teacher(damaged, tmp_path)


def test_a_hub_name_needs_its_config_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_config(tmp_path / "snapshot")
    monkeypatch.setattr("minitron_nas.models.source.download_config", lambda name: folder)
    assert outline_teacher("owner/name", tmp_path).path == "owner/name"
    with pytest.raises(TeacherNotFoundError, match="there is no teacher at 'nowhere'"):
        outline_teacher("nowhere", tmp_path)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"num_hidden_layers": 10**12},
            r"num_hidden_layers=1000000000000 must lie in 1..10000 no known model has more",
        ),
        ({"hidden_size": 0}, "hidden_size=0 must lie in"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"architectures": ["BertForMaskedLM"]}, "no causal language model"),
    ],
)
def test_what_no_model_has_is_refused_in_a_config_alone(tmp_path: Path, changes: dict[str, object], fault: str) -> None:
    with pytest.raises(CheckpointError, match=fault):
        outline_teacher(write_config(tmp_path / "odd", **changes), tmp_path)


def test_a_shape_alone_is_taken_in_half_precision() -> None:
    shape = Architecture(
        model_type="gpt2",
        num_hidden_layers=2,
        hidden_size=8,
        intermediate_size=32,
        vocab_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=32,
    )
    outline = Outline.of_shape("a shape", shape, layout_of("gpt2"))
    assert outline.weights_bytes == 2 * outline.num_parameters
    outline.require_length(32)
    with pytest.raises(PlanError, match="a shape has learned 32 positions, fewer than a sequence of 33"):
        outline.require_length(33)


@pytest.mark.parametrize(
    ("rope", "told"),
    [({"rope_type": "default"}, True), ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}, False)],
)
def test_sequences_longer_than_a_model_was_made_for_are_told(tmp_path: Path, rope: dict[str, Any], told: bool) -> None:
    config = tiny_config("llama").to_dict() | {"max_position_embeddings": 128, "rope_parameters": rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    outline = outline_teacher(tmp_path, tmp_path / "work")
    assert list(outline.about(128)) == []
    words = "sequences of 129 tokens are longer than the model was made for (max_position_embeddings=128)"
    assert [note.startswith(words) for note in outline.about(129)] == [True] * told


@pytest.mark.parametrize("model_type", ["llama", "falcon_h1"])
def test_a_model_whose_layers_hand_a_state_on_says_so(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(tiny_config(model_type).to_dict() | {"time_step_limit": [0.0, 1.0]})
    )
    notes = list(outline_teacher(tmp_path, tmp_path / "work").about(0))
    assert [note.startswith("layers of falcon_h1 hand a state on from token to token") for note in notes] == (
        [True] if model_type == "falcon_h1" else []
    )
