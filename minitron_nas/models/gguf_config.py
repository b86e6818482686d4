"""What a GGUF file says about its model, as the content of a `config.json`: every key is used, or refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minitron_nas.architecture.layout import Layout
from minitron_nas.errors import CheckpointError
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.gguf_file import GgufFile
from minitron_nas.models.gguf_rope import rope_parameters

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
_SIZES = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "context_length": "max_position_embeddings",
}  # fmt: skip
"""Keys that every file has to have, and the fields of `Architecture` that they hold."""

_TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
_HEAD_DIMS = (
    "attention.value_length", "attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa",
)  # fmt: skip
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0, 1),
    "rope.scaling.yarn_ext_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "use_parallel_residual": (False,),
}
"""What keys may say that changes nothing."""

_COUNTING = (
    "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "rope.dimension_count", "vocab_size", "expert_count", "expert_used_count",
    "expert_feed_forward_length",
)  # fmt: skip
"""Keys whose value is the size of a tensor's dimension, or divides one."""

_MAY_BE_ZERO = frozenset({"expert_count", "expert_used_count", "expert_feed_forward_length", "attention.key_length"})
_LONGEST = 2**40

_DESCRIBING = frozenset({"tensor_data_layout"})
"""Keys of an architecture that say nothing about the computation."""

_LARGE_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Number of layers of the models whose attention llama.cpp scales by hidden_size / heads instead of head_dim."""


@dataclass(frozen=True, slots=True)
class GgufFamily:
    """How one architecture of GGUF files is written in a `config.json`.

    Attributes:
        model_type: Its family.
        needs: Further keys that a file has to have, and their names in `config.json`.
        may_have: Keys that a file may have, likewise.
        always: What llama.cpp does with every file of the architecture.
        partial: Whether part of a head may be rotated.
    """

    model_type: str
    needs: Mapping[str, str]
    may_have: Mapping[str, str] = field(default_factory=dict)
    always: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False


_RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
_EXPERTS = {
    "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}  # fmt: skip
FAMILIES = {
    "gemma2": GgufFamily("gemma2", _RMS, {**_WINDOW, **_CAPS}),
    "gemma3": GgufFamily("gemma3_text", {**_RMS, **_WINDOW}, _CAPS),
    "gpt2": GgufFamily("gpt2", {"attention.layer_norm_epsilon": "layer_norm_epsilon"}),
    "llama": GgufFamily("llama", _RMS),
    "nemotron": GgufFamily("nemotron", {"attention.layer_norm_epsilon": "norm_eps"}, partial=True),
    "phi3": GgufFamily("phi3", _RMS, {**_WINDOW}, {"sliding_window": None}, partial=True),
    "qwen2": GgufFamily("qwen2", _RMS),
    "qwen3": GgufFamily("qwen3", _RMS),
    "qwen3moe": GgufFamily(
        "qwen3_moe", {**_RMS, **_EXPERTS}, {"expert_weights_norm": "norm_topk_prob"}, {"norm_topk_prob": True}
    ),
    "starcoder2": GgufFamily("starcoder2", {"attention.layer_norm_epsilon": "norm_epsilon"}),
}
"""By `general.architecture`."""


def family_of(file: GgufFile) -> GgufFamily:
    """Return how a file's architecture is written.

    Raises:
        UnknownFamilyError: If no table describes its family.
        CheckpointError: If the file holds no language model, or GGUF files of the family are not read.
    """
    kind = file.keys.get("general.type", "model")
    if kind != "model":
        raise CheckpointError(f"{file.path} holds a GGUF {kind}, not a model; give the .gguf file of the whole model")
    name = str(file.keys.get("general.architecture"))
    if name not in FAMILIES:
        layout_of(name)
        raise CheckpointError(
            f"GGUF files of architecture {name!r} are not read, only {', '.join(FAMILIES)}; give a safetensors folder "
            f"of the model instead of {file.path}"
        )
    return FAMILIES[name]


def config_of(file: GgufFile, family: GgufFamily, layout: Layout) -> dict[str, Any]:
    """Return the content of a `config.json`; flags that only tensors tell are left to the caller.

    Args:
        file: The file.
        family: How its architecture is written.
        layout: The table of its family.

    Raises:
        CheckpointError: If a key is missing, contradicts the tensors, or means something that is not read.
    """
    name = str(file.keys["general.architecture"])
    prefix = f"{name}."
    keys = {key.removeprefix(prefix): _single(file, key) for key in file.keys if key.startswith(prefix)}
    _require_sizes(file, keys)
    sizes = {wanted: _take(file, keys, key) for key, wanted in _SIZES.items()}
    heads, width, layers = sizes["num_attention_heads"], sizes["hidden_size"], sizes["num_hidden_layers"]
    sizes["num_key_value_heads"] = keys.pop("attention.head_count_kv", heads)
    rotated = keys.pop("rope.dimension_count", None)
    sizes["head_dim"] = keys.pop("attention.key_length", None) or _head_dim(rotated, heads, width, family)
    sizes["vocab_size"] = _vocab_size(file, keys.pop("vocab_size", None))
    config = {"model_type": family.model_type, **family.always}
    for field_name, size in sizes.items():
        config |= dict.fromkeys(layout.config_names(field_name), size)
    config |= {wanted: _take(file, keys, key) for key, wanted in family.needs.items()}
    config |= {wanted: keys.pop(key) or None for key, wanted in family.may_have.items() if key in keys}
    if family.model_type != "gpt2":
        config |= _positions(file, keys, config, sizes["head_dim"], rotated or sizes["head_dim"])
    if name.startswith("gemma"):
        scalar = width // heads if _LARGE_GEMMA[name] == layers else sizes["head_dim"]
        config |= {"query_pre_attn_scalar": scalar, **_windows(file, keys, layers, name)}
    _refuse_rest(file, prefix, keys, sizes["head_dim"], rotated, family)
    said = {wanted: file.keys.get(f"tokenizer.ggml.{key}") for key, wanted in _TOKENS.items()}
    return config | {wanted: None if token is None else int(token) for wanted, token in said.items()}


def _require_sizes(file: GgufFile, keys: Mapping[str, Any]) -> None:
    """Hold sizes against the tensors before anything is counted by them."""
    largest = max((size for tensor in file.tensors.values() for size in tensor.shape), default=0)
    bounds = dict.fromkeys(_COUNTING, largest) | {"block_count": len(file.tensors), "context_length": _LONGEST}
    for key, bound in bounds.items():
        value, least = keys.get(key), 0 if key in _MAY_BE_ZERO else 1
        if value is not None and (type(value) is not int or not least <= value <= bound):
            raise CheckpointError(
                f"{file.path} says {file.keys['general.architecture']}.{key}={value!r}, which is no integer from "
                f"{least} to {bound:,}, the most that its tensors can have; download it again"
            )


def _positions(
    file: GgufFile, keys: dict[str, Any], config: Mapping[str, Any], dim: int, rotated: int
) -> dict[str, Any]:
    base_of_windows = keys.pop("rope.freq_base_swa", None)
    length = config["max_position_embeddings"]
    rope = rope_parameters(file, keys, rotated, length)
    if config["model_type"] == "gemma3_text":
        sliding = {"rope_type": "default", "rope_theta": float(base_of_windows or 10000.0)}
        return {"rope_parameters": {"full_attention": rope, "sliding_attention": sliding}}
    if FAMILIES[str(file.keys["general.architecture"])].partial:
        rope["partial_rotary_factor"] = rotated / dim
    if base_of_windows is not None and base_of_windows != rope["rope_theta"]:
        keys["rope.freq_base_swa"] = base_of_windows
    if config["model_type"] != "phi3":
        return {"rope_parameters": rope}
    return {
        "rope_parameters": rope,
        "original_max_position_embeddings": rope.get("original_max_position_embeddings", length),
    }


def _windows(file: GgufFile, keys: dict[str, Any], num_layers: int, name: str) -> dict[str, Any]:
    """Which layers see a window: every one but the last of 2 in Gemma 2, of 6 in Gemma 3, or as the file says."""
    said = keys.pop("attention.sliding_window_pattern", 2 if name == "gemma2" else 6)
    if isinstance(said, list):
        if len(said) != num_layers:
            raise CheckpointError(f"{file.path}: {name}.attention.sliding_window_pattern has {len(said)} entries, "
                                  f"not one for each of {num_layers} layers; download it again")  # fmt: skip
        sliding = [bool(each) for each in said]
    else:
        sliding = [bool(said) and (layer + 1) % int(said) != 0 for layer in range(num_layers)]
    return {"layer_types": ["sliding_attention" if each else "full_attention" for each in sliding]}


def _head_dim(rotated: int | None, heads: int, width: int, family: GgufFamily) -> int:
    """The size of a head in a file that does not say it."""
    return rotated if rotated and not family.partial else width // heads


def _vocab_size(file: GgufFile, said: int | None) -> int:
    """How many entries the vocabulary has: what the embedding has, with which all else has to agree."""
    if EMBEDDING not in file.tensors:
        raise CheckpointError(f"{file.path} has no tensor {EMBEDDING}; download it again")
    rows = file.tensors[EMBEDDING].shape[0]
    tokens = file.keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, int):
        raise CheckpointError(f"{file.path} has no vocabulary (tokenizer.ggml.tokens); convert the model again with it")
    if (said is not None and said != rows) or tokens > rows:
        raise CheckpointError(
            f"{file.path} says that it has {said or tokens} tokens, and its {EMBEDDING} has {rows} rows; convert the "
            "model again"
        )
    return rows


def _single(file: GgufFile, key: str) -> Any:
    """The value of a key; of a list with one entry per layer, which is the same for all, that entry."""
    value = file.keys[key]
    if not isinstance(value, list) or key.endswith("sliding_window_pattern"):
        return value
    if len({str(each) for each in value}) != 1:
        raise CheckpointError(
            f"{file.path}: {key}={value!r} differs from layer to layer, which transformers' class of this family does "
            "not know; give a safetensors folder of the model"
        )
    return value[0]


def _take(file: GgufFile, keys: dict[str, Any], key: str) -> Any:
    if keys.get(key) is None:
        name = file.keys["general.architecture"]
        raise CheckpointError(f"{file.path} has no key {name}.{key}, without which its model cannot be built again")
    return keys.pop(key)


def _refuse_rest(
    file: GgufFile, prefix: str, keys: Mapping[str, Any], head_dim: int, rotated: int | None, family: GgufFamily
) -> None:
    """Refuse every key that is left and changes the computation."""
    allowed = {**_NEUTRAL, **dict.fromkeys(_HEAD_DIMS, (head_dim,))}
    left = {key: value for key, value in keys.items() if key not in _DESCRIBING and value not in allowed.get(key, ())}
    if rotated is not None and rotated != head_dim and not family.partial:
        left["rope.dimension_count"] = rotated
    if left:
        named = ", ".join(f"{prefix}{key}={value!r}" for key, value in left.items())
        raise CheckpointError(
            f"{file.path}: {named} is nothing that transformers' {family.model_type} computes with; give a safetensors "
            "folder of the model"
        )
