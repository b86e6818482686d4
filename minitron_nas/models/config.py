"""Reading `config.json`: which family a folder belongs to, and its shape."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import CheckpointError, TeacherNotFoundError
from minitron_nas.families.catalog import layout_of

_CAUSAL_CLASSES = ("ForCausalLM", "LMHeadModel")


def read_config(path: Path) -> dict[str, Any]:
    """Read a folder's `config.json` as it stands.

    Raises:
        TeacherNotFoundError: If the folder does not exist.
        CheckpointError: If it has no `config.json`, or one that is not a JSON object.
    """
    if not path.is_dir():
        raise TeacherNotFoundError(f"{path} is not a folder; give a folder that save_pretrained wrote")
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path} has no config.json; give a folder that save_pretrained wrote")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}); copy it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds a JSON {type(config).__name__}, not an object; copy it again")
    return config


def read_architecture(path: Path, config: dict[str, Any]) -> tuple[Architecture, Layout]:
    """Read the shape of a folder and find its family.

    transformers fills in what `config.json` leaves out, so that a shape never rests on our defaults.

    Args:
        path: The folder.
        config: The content of its `config.json`.

    Raises:
        CheckpointError: If it is not a causal language model in plain floating point, or transformers
            refuses the config.
        UnknownFamilyError: If no table describes its model type.
        InvalidArchitectureError: If the shape cannot exist.
    """
    _refuse_other_tasks(path, config)
    layout = layout_of(str(config.get("model_type", "(none)")))
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{path} holds a quantised model; pruning needs plain floating-point weights: give the model "
            "that it was quantised from, or dequantise it in transformers and save it again"
        )
    try:
        filled = AutoConfig.from_pretrained(path, trust_remote_code=False).to_dict()
    except (ValueError, TypeError, KeyError, OSError, StrictDataclassError) as error:
        raise CheckpointError(f"transformers refuses {path / 'config.json'}: {error}") from error
    return architecture_of(filled, layout), layout


def layer_lists(config: Mapping[str, Any], num_layers: int, kept_layers: Sequence[int]) -> dict[str, list[Any]]:
    """Return the lists of a config that hold one entry per layer, with the entries of some layers only.

    Args:
        config: The content of a `config.json` with all that transformers fills in.
        num_layers: How many layers the config describes.
        kept_layers: Ascending indices of layers.
    """
    return {
        key: [value[layer] for layer in kept_layers]
        for key, value in config.items()
        if isinstance(value, list) and "layer" in key and len(value) == num_layers
    }


def _refuse_other_tasks(path: Path, config: dict[str, Any]) -> None:
    classes = config.get("architectures") or []
    if classes and not any(name.endswith(_CAUSAL_CLASSES) for name in classes):
        raise CheckpointError(
            f"{path} holds a {', '.join(classes)}, which is no causal language model; "
            "minitron_nas prunes ...ForCausalLM classes only"
        )
