"""The text part of a wrapper, such as Qwen3-VL: its config as a stock config, its tensors by its family's names.

A wrapper's folder is used where it lies: what reads a config or headers reads the text part's.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from minitron_nas.errors import CheckpointError
from minitron_nas.families.wrappers import Wrapper, wrapper_of
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.relatives import known_layout
from minitron_nas.storage.foreign import read_object
from minitron_nas.storage.weights import TensorHeader, read_headers

_CONFIG = "config.json"
_WRAPPER_CLASS = "ForConditionalGeneration"
_TIED = "tie_word_embeddings"
_DTYPE = "dtype"
_EMBEDDING = "model.embed_tokens.weight"
"""What every text part has, and says how many hidden channels it has."""
_OF_THE_WHOLE = ("bos_token_id", "eos_token_id", "quantization_config")
"""What holds for the text part if it stands at a wrapper's top level. Padding, a row of its embedding, is its own."""
_COUNTS = ("num_hidden_layers", "num_labels")
"""Keys that transformers makes a list or a table of, entry by entry."""
_MOST = 10_000
_OF_PICTURES = ("mrope_section", "mrope_interleaved", "type")
"""Entries of `rope_parameters` that say how positions of pictures turn; in text all three are one."""


def wrapper_in(folder: Path) -> Wrapper | None:
    """Return the wrapper that a folder holds, None where it holds another model or no config.

    Raises:
        CheckpointError: If its `config.json` cannot be read.
    """
    file = folder / _CONFIG
    return wrapper_of(read_object(file)) if file.is_file() else None


def text_config(file: Path | str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the stock config of a wrapper's text part; that of another model as it is.

    Args:
        file: The `config.json`, for messages.
        config: Its content; it stays as it is.

    Raises:
        CheckpointError: If it is a wrapper for another task, or transformers refuses it.
        UnknownFamilyError: If no table describes the text part.
    """
    wrapper = wrapper_of(config)
    if wrapper is None:
        return config
    stated = config.get("text_config", config)
    _refuse_odd_configs(file, config, stated)
    try:
        filled = AutoConfig.for_model(**copy.deepcopy(config))
        part, whole = filled.get_text_config().to_dict(), filled.to_dict()
    except Exception as error:
        raise CheckpointError(f"transformers refuses {file}: {' '.join(str(error).split())}") from error
    family = wrapper.family(str(part["model_type"]))
    layout = known_layout({**stated, "model_type": family}, f"the text part of a {wrapper.model_type}")
    own = AutoConfig.for_model(family).to_dict()
    read = {key for name in (*layout.shape_fields(), "head_dim") for key in layout.config_names(name)}
    found = {key: value for key, value in part.items() if key in own or key in read}
    if _TIED in config or _TIED in stated:
        found[_TIED] = whole[_TIED]
    else:
        found[_TIED] = own.get(_TIED, False)
    found |= {key: config[key] for key in _OF_THE_WHOLE if config.get(key) is not None}
    found |= wrapper.computes
    found |= {"model_type": family, "architectures": [str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(family, family))]}
    found[_DTYPE] = whole.get(_DTYPE) or part.get(_DTYPE)
    if found.get("rope_parameters"):
        found["rope_parameters"] = _rope_of_text(found["rope_parameters"])
    return {key: value for key, value in found.items() if value is not None or own.get(key) is not None}


def read_text_headers(folder: Path) -> dict[str, TensorHeader]:
    """Read the headers of a folder's tensors; of a wrapper those of its text part, by the text model's names.

    Args:
        folder: A stock folder.

    Raises:
        CheckpointError: If a file cannot be read, or two tensors of a wrapper have one name in its text part.
    """
    headers, wrapper = read_headers(folder), wrapper_in(folder)
    if wrapper is None:
        return headers
    found: dict[str, TensorHeader] = _text_tensors(str(folder), wrapper, headers)
    embedding = found.get(_EMBEDDING)
    hidden_size = embedding.shape[-1] if embedding is not None and embedding.shape else 0
    return {
        name: header.turned() if wrapper.lies_turned(name, header.shape, hidden_size) else header
        for name, header in found.items()
    }


def live_text_model(model: CausalLM, wrapper: Wrapper) -> CausalLM:
    """Return the text part of a loaded wrapper as a stock model that shares its tensors; it is fit to be saved.

    Args:
        model: The wrapper; it stays as it is.
        wrapper: Its type.

    Raises:
        CheckpointError: If it is a wrapper for another task.
        UnknownFamilyError: If no table describes the text part.
    """
    told = f"the live {type(model).__name__}"
    config = text_config(told, {**model.config.to_dict(), "architectures": [type(model).__name__]})
    tensors = _text_tensors(told, wrapper, model.state_dict())
    with torch.device("meta"):
        text: CausalLM = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=model.dtype)
    try:
        text.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{told} does not hold the tensors of a {type(text).__name__} ({' '.join(str(error).split())}); save it "
            "with save_pretrained and give the folder"
        ) from error
    text.generation_config = model.generation_config
    return text


def causal_lm_in(model: CausalLM) -> CausalLM:
    """Return the causal LM that a wrapper holds; the wrapper, where its own class puts out logits.

    Llama 4's holds one, and its own forward pass fails on text without pictures in transformers 5.24.

    Args:
        model: Any model that transformers has loaded.
    """
    inner = getattr(model, "language_model", None)
    return inner if isinstance(inner, PreTrainedModel) and inner.get_output_embeddings() is not None else model


def _text_tensors(told: str, wrapper: Wrapper, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return what belongs to the text part, by the text model's names."""
    found: dict[str, TensorHeader | Tensor] = {}
    for stored, name in wrapper.text_names(tensors).items():
        if name in found:
            raise CheckpointError(
                f"{told} holds two tensors {name!r} of its text part; save it again with save_pretrained"
            )
        found[name] = tensors[stored]
    return found


def _refuse_odd_configs(file: Path | str, config: Mapping[str, Any], stated: object) -> None:
    """Refuse other tasks, and numbers that would keep transformers busy without end."""
    classes = config.get("architectures") or []
    if not isinstance(classes, list) or not all(str(name).endswith(_WRAPPER_CLASS) for name in classes):
        raise CheckpointError(
            f"{file}: architectures={classes!r}; the text part is taken out of ...{_WRAPPER_CLASS} classes only"
        )
    if not isinstance(stated, dict):
        raise CheckpointError(f"{file}: text_config={stated!r} must be an object")
    for key in _COUNTS:
        value = stated.get(key, 1)
        if value is not None and not (isinstance(value, int) and 0 <= value <= _MOST):
            raise CheckpointError(f"{file}: {key}={value!r} must be an integer in 0..{_MOST}")


def _rope_of_text(rope: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in rope.items() if key not in _OF_PICTURES}
    return {**kept, "rope_type": "default"} if kept.get("rope_type") == "mrope" else kept
