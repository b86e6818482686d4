"""From the config of a real model to a tiny one that keeps what is odd about it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from minitron_nas.architecture.config import BY_LAYER
from minitron_nas.architecture.kinds import Listed, SharedKeys
from minitron_nas.models.config import LISTS_OF_NUMBERS, layer_lists
from minitron_nas.testing.tiny import SPECIAL_TOKENS

VOCAB_SIZE = 320
_POSITIONS = 256
_ORIGINAL_POSITIONS = 64
_WINDOW = 5
"""Less than a prompt of the suite has tokens."""
_TINY = 64
_FEWEST_LAYERS, _MOST_LAYERS = 4, 8
_MOST_HEADS, _MOST_IN_GROUP, _MOST_GROUPS = 6, 3, 2
_MOST_RATIO = 4
_GRAIN = 8
_FEWEST_NEURONS = 16
_EXPERTS, _EXPERTS_PER_TOKEN = 4, 2
_NOT_SHRUNK = frozenset({
    "_name_or_path", "architectures", "auto_map", "dtype", "quantization_config", "torch_dtype", "transformers_version",
})  # fmt: skip
_ROTATED_SHARE = ("partial_rotary_factor", "rotary_pct")
_ROTATED_CHANNELS = "rotary_dim"
_LAST_LAYERS = ("moe_layer_end_index",)
_FACTORS = ("short_factor", "long_factor")
_SHARING = "num_kv_shared_layers"
_PER_LAYER, _VOCAB_PER_LAYER = "hidden_size_per_layer_input", "vocab_size_per_layer_input"
_OF_LOGITS = ("logits_scaling", "logit_scale", "lm_head_multiplier")
_SOME_FACTOR = 1.25
"""In place of 1, which would hide what a model does with it."""
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2}

Keys = Callable[[str], Sequence[str]]
"""From a field of `Architecture` to the keys under which a config may hold it, as `Layout.config_names` says."""


def shrunk(config: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """Return the config of a tiny model of the same kind.

    Kept are how the sizes compare, up to a factor of four, biases, tying, activations, kinds of layers (the first of
    every kind stays), rotary positions and whatever else the config says. Windows become shorter than a prompt. There
    are at least two KV groups, so that a group can leave. A model that is tiny already keeps its sizes.

    Args:
        config: With all that transformers fills in.
        keys: Says where the config has what.
    """
    content = {key: value for key, value in config.items() if key not in _NOT_SHRUNK}

    def size(field: str) -> int | None:
        return next((content[key] for key in keys(field) if isinstance(content.get(key), int)), None)

    sizes = {"vocab_size": VOCAB_SIZE}
    if (size("hidden_size") or _TINY + 1) > _TINY:
        sizes |= _sizes(size, _shares(content))
        sizes |= _mixers(size, sizes["hidden_size"])
        whole = size("num_hidden_layers") or _FEWEST_LAYERS
        layers = _kept_layers(content, whole)
        sizes["num_hidden_layers"] = len(layers)
        content |= _of_layers(content, size("num_hidden_layers") or 0, layers)
        content |= _numbers(content, len(layers))
        if content.get(_SHARING):
            content[_SHARING] = sum(layer >= whole - content[_SHARING] for layer in layers)
        if content.get(_PER_LAYER):
            content[_PER_LAYER] = min(_GRAIN, content[_PER_LAYER])
        if content.get(BY_LAYER):
            content[BY_LAYER] = _smaller_heads(content[BY_LAYER], layers, sizes["head_dim"])
    for field, value in sizes.items():
        content |= {key: value for key in keys(field) if key in content}
    content |= {key: _SOME_FACTOR for key in _OF_LOGITS if content.get(key) == 1}
    content |= _tokens(content)
    if _VOCAB_PER_LAYER in content:
        content[_VOCAB_PER_LAYER] = VOCAB_SIZE
    if content.get("sliding_window"):
        content["sliding_window"] = min(_WINDOW, content["sliding_window"])
    head_dim = sizes.get("head_dim")
    if head_dim is not None:
        if content.get(_ROTATED_CHANNELS):
            content[_ROTATED_CHANNELS] = min(content[_ROTATED_CHANNELS], head_dim // 4 * 2)
        return {key: _shorter_rope(value, head_dim) if "rope" in key else value for key, value in content.items()}
    return content


def _sizes(size: Callable[[str], int | None], shares: Sequence[float]) -> dict[str, int]:
    hidden, heads = size("hidden_size") or 0, size("num_attention_heads") or 1
    groups = size("num_key_value_heads") or heads
    in_group = min(_MOST_IN_GROUP, heads // groups) or 1
    few = 2 if in_group > 1 else min(_MOST_HEADS, max(2, groups))
    head_dim = size("head_dim") or hidden // heads
    ratio = min(_MOST_RATIO, hidden / (heads * head_dim)) if head_dim else 1
    tiny_dim = _head_dim(8 if ratio >= 1 else 16, shares)
    tiny_heads = few * in_group
    step = math.lcm(tiny_heads, _GRAIN)
    width = tiny_heads * tiny_dim
    tiny_hidden = width if ratio == 1 else max(1, round(width * ratio / step)) * step
    sizes = {
        "hidden_size": tiny_hidden,
        "num_attention_heads": tiny_heads,
        "num_key_value_heads": few,
        "head_dim": tiny_dim,
        "max_position_embeddings": _POSITIONS,
    }
    for field in ("intermediate_size", "moe_intermediate_size"):
        if neurons := size(field):
            widths = min(_MOST_RATIO, neurons / hidden) if hidden else 1
            sizes[field] = max(_FEWEST_NEURONS, round(tiny_hidden * widths / _GRAIN) * _GRAIN)
    if experts := size("num_experts"):
        sizes["num_experts"] = min(_EXPERTS, experts)
        sizes["num_experts_per_tok"] = min(_EXPERTS_PER_TOKEN, size("num_experts_per_tok") or 1)
    return sizes


def _mixers(size: Callable[[str], int | None], hidden: int) -> dict[str, int]:
    """Return the sizes of Mamba mixers, whole times as wide as the hidden channels; nothing without them."""
    heads, dim, groups = (size(f"mamba_{name}") for name in ("num_heads", "head_dim", "num_groups"))
    if not heads or not dim:
        return {}
    times = max(1, min(_MOST_RATIO, round(heads * dim / (size("hidden_size") or 1))))
    few = times * hidden // _GRAIN
    return {
        "mamba_num_heads": few,
        "mamba_head_dim": _GRAIN,
        "mamba_num_groups": math.gcd(few, min(_MOST_GROUPS, groups or 1)),
        "mamba_d_ssm": times * hidden,
        "mamba_expand": times,
    }


def _head_dim(least: int, shares: Sequence[float]) -> int:
    """The least even number of channels of which every share that is rotated is even."""
    return next(size for size in range(least, 2 * least + 64, 2) if all(int(size * share) % 2 == 0 for share in shares))


def _shares(content: Mapping[str, Any]) -> list[float]:
    return [value for inner in _nested(content) for key in _ROTATED_SHARE if isinstance(value := inner.get(key), float)]


def _nested(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield value
    for inner in value.values():
        if isinstance(inner, Mapping):
            yield from _nested(inner)


def _kept_layers(content: Mapping[str, Any], num_layers: int) -> list[int]:
    """Return the first layer of every kind, and others until there are enough of them."""
    lists = [value for value in _by_layer(content, num_layers).values() if not isinstance(value[0], list)]
    if content.get(_SHARING):
        lists.append([*SharedKeys(_SHARING, Listed("layer_types"), _PER_LAYER).read(content, num_layers)])
    kinds = list(zip(*lists, strict=True)) or [()] * num_layers
    firsts = [layer for layer in range(num_layers) if kinds.index(kinds[layer]) == layer]
    kept = firsts[:_MOST_LAYERS]
    others = [layer for layer in range(num_layers) if layer not in kept]
    return sorted(kept + others[: max(0, _FEWEST_LAYERS - len(kept))])


def _by_layer(content: Mapping[str, Any], num_layers: int) -> dict[str, list[Any]]:
    return _of_layers(content, num_layers, range(num_layers))


def _of_layers(content: Mapping[str, Any], num_layers: int, kept: Sequence[int]) -> dict[str, list[Any]]:
    return layer_lists(content, num_layers, kept) if num_layers > 0 else {}


def _numbers(content: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """Return the keys that name layers by their numbers, of layers that there are: the last where none is left."""
    lists = {key: content[key] for key in LISTS_OF_NUMBERS if content.get(key)}
    named = {key: [layer for layer in layers if layer < num_layers] for key, layers in lists.items()}
    return {
        **{key: layers or [num_layers - 1] for key, layers in named.items()},
        **{key: num_layers - 1 for key in _LAST_LAYERS if key in content},
    }


def _smaller_heads(
    by_layer: Mapping[str, Mapping[str, Any]], kept: Sequence[int], head_dim: int
) -> dict[str, dict[str, Any]]:
    """Let layers that have heads of their own have heads twice as wide as the others', all in one group."""
    tiny = {"head_dim": 2 * head_dim, "num_key_value_heads": 1}
    own = {int(layer): sizes for layer, sizes in by_layer.items()}
    return {
        str(number): {key: tiny.get(key, value) for key, value in own[layer].items()}
        for number, layer in enumerate(kept)
        if layer in own
    }


def _tokens(content: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the tiny tokenizer for every token that the config names."""
    ids = {key: value for key, value in content.items() if key.endswith("_token_id") and value is not None}
    return {key: _TOKENS.get(key, len(SPECIAL_TOKENS) - 1) for key in ids}


def _shorter_rope(value: Any, head_dim: int) -> Any:
    """Fit what a config says of rotary positions to shorter heads and fewer positions."""
    if not isinstance(value, Mapping):
        return value
    share = value.get("partial_rotary_factor") or 1.0
    fitted: dict[str, Any] = {}
    for key, inner in value.items():
        if key in _FACTORS and isinstance(inner, list):
            fitted[key] = inner[: int(head_dim * share) // 2]
        elif key == "original_max_position_embeddings" and inner:
            fitted[key] = min(inner, _ORIGINAL_POSITIONS)
        else:
            fitted[key] = _shorter_rope(inner, head_dim)
    return fitted
