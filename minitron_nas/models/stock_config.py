"""The `config.json` of a stock folder, written so that every reader of it computes the same."""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from minitron_nas.families.catalog import layouts
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.special_floats import plain_floats, tagged_floats
from minitron_nas.storage.atomic import read_json, write_json

_SHARD_SIZE = "5GB"
_FOREIGN = frozenset({
    "adapter_config", "attn_implementation", "auto_map", "compression_config", "custom_pipelines", "fusion_config",
    "pretraining_tp", "quantization_config", "transformers_weights",
})  # fmt: skip
"""Keys that name code, files, kernels or packings of the model that a config was copied from."""

_BOTH_NAMES = {"gpt_neox": {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}}
"""What a family calls the entries of its `rope_parameters` besides their names in transformers 4, by model type."""

_KINDS_ELSEWHERE = {"granitemoehybrid": {"linear_attention": "mamba", "full_attention": "attention"}}
"""What a family's kinds of layers are called in published configs, by model type.

transformers 5 reads these and its own names; transformers 4 and other engines read these alone.
"""

_TYPE_ALONE = frozenset({"olmo2", "phi3"})
"""Families that transformers 4 lets have no key in `rope_scaling` but `type` and what that type needs."""

_NOT_IN_4 = frozenset({"proportional"})
"""Types of rotary positions of which transformers 4, and so its form of them, has none."""

_OUTSIDE_SCALING = frozenset({"rope_theta", "partial_rotary_factor", "rope_type", "type"})
"""Entries of `rope_parameters` that have no place in `rope_scaling`, or another name."""


def save_stock(model: CausalLM, folder: Path) -> None:
    """Save a model as transformers does, with a `config.json` for every reader; the model stays as it is.

    Args:
        model: The model.
        folder: An existing folder; what it holds of the same names is replaced.

    Raises:
        ValueError: If transformers refuses to save the model's generation config.
    """
    # Saving notes type and class in the config: a shallow copy takes these notes.
    twin = copy.copy(model)
    twin.config = _without_generation(model.config)
    vars(twin).pop("_weight_conversions", None)  # with it transformers before 5.24 leaves out what it has dequantised
    twin.save_pretrained(folder, max_shard_size=_SHARD_SIZE)
    file = folder / "config.json"
    content = plain_floats(read_json(file))
    write_json(file, tagged_floats(finished_config(content, content["dtype"])))


def finished_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config as it is written beside weights: nothing of its origin, and all that readers differ in.

    transformers 5 reads `rope_parameters` and `dtype`; transformers 4 and what was built on it read `rope_theta`,
    `rope_scaling` and `torch_dtype`, and take their own defaults, without a word, where these are missing.
    Both get theirs, with one meaning.

    Args:
        config: The content of a `config.json`, in either form; it stays as it is.
        dtype: Of the stored weights, as torch names it.
    """
    own = {key: value for key, value in config.items() if not key.startswith("_") and key not in _FOREIGN}
    filled = AutoConfig.for_model(**copy.deepcopy(own))
    own |= {"dtype": dtype, "torch_dtype": dtype}
    tied = getattr(filled, "tie_word_embeddings", None)
    if tied is not None:
        own["tie_word_embeddings"] = tied
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(filled.model_type)
    if isinstance(name, str):
        own["architectures"] = [name]
    patterns = _patterns(config, filled)
    written = {**own, **_aliases(filled), **patterns, **_kinds(filled), **_rope(filled), **_global_heads(filled)}
    return {key: value for key, value in written.items() if value is not None or key not in patterns}


def _without_generation(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy without what old configs say about generation, which transformers refuses to save there.

    A model that was loaded has it in its generation config, which is saved beside.
    """
    alone, known = copy.deepcopy(config), type(config)().to_dict()
    for key in GenerationConfig().to_dict():
        if key in vars(alone) and key not in known:
            delattr(alone, key)
    return alone


def _aliases(filled: PreTrainedConfig) -> dict[str, Any]:
    """Sizes that go by several names, as the number of experts does, under all of them."""
    layout = layouts().get(filled.model_type)
    several = [names for names in layout.config_keys.values() if len(names) > 1] if layout else []
    return {name: getattr(filled, names[0]) for names in several for name in names}


def _patterns(config: Mapping[str, Any], filled: PreTrainedConfig) -> dict[str, int | str | list[int] | None]:
    """What short forms of a list with one entry per layer have to say; None for one that cannot say it."""
    found: dict[str, int | str | list[int] | None] = {}
    num_layers = filled.num_hidden_layers
    kinds = getattr(filled, "layer_types", None)
    full = [kind == "full_attention" for kind in kinds or []]
    stated = config.get("sliding_window_pattern", getattr(filled, "_sliding_window_pattern", None))
    if isinstance(stated, str):
        found["sliding_window_pattern"] = _letters(full, stated)
    elif stated is not None:
        found["sliding_window_pattern"] = _period(full, stated)
    if "no_rope_layer_interval" in config:
        without = [not rotary for rotary in getattr(filled, "no_rope_layers", None) or []]
        found["no_rope_layer_interval"] = _period(without, config["no_rope_layer_interval"])
    if "interleave_moe_layer_step" in config:
        with_experts = [layer in filled.moe_layers for layer in range(num_layers)]
        found["interleave_moe_layer_step"] = _period(with_experts, config["interleave_moe_layer_step"])
    if "full_attention_interval" in config:
        found["full_attention_interval"] = _period(full, config["full_attention_interval"])
    if "first_k_dense_replace" in config and getattr(filled, "mlp_layer_types", None):
        found["first_k_dense_replace"] = _leading(filled.mlp_layer_types, "dense")
    if config.get("full_attn_idxs") is not None:
        found["full_attn_idxs"] = [layer for layer, is_full in enumerate(full) if is_full]
    if "hybrid_override_pattern" in config:
        found["hybrid_override_pattern"] = getattr(filled, "hybrid_override_pattern", None)
    if config.get("max_window_layers") is not None:
        before = next((layer for layer, is_full in enumerate(full) if not is_full), num_layers)
        found["max_window_layers"] = before if kinds else min(config["max_window_layers"], num_layers)
    return found


def _kinds(filled: PreTrainedConfig) -> dict[str, list[str]]:
    """Kinds of layers, where their names in transformers 5 are news to other readers."""
    names = _KINDS_ELSEWHERE.get(filled.model_type)
    return {"layer_types": [names[kind] for kind in filled.layer_types]} if names else {}


def _global_heads(filled: PreTrainedConfig) -> dict[str, int]:
    """The keys by which other readers know heads of layers that see everything; per_layer_config is for the newest."""
    if not filled.model_type.startswith("gemma4") or "full_attention" not in filled.layer_types:
        return {}
    own = filled.per_layer_config[filled.layer_types.index("full_attention")]
    groups = {"num_global_key_value_heads": own.num_key_value_heads} if filled.attention_k_eq_v else {}
    return {"global_head_dim": own.head_dim, **groups}


def _letters(full: Sequence[bool], stated: str) -> str:
    """A pattern that repeats, as EXAONE 4's "LLLG" does: the stated one if it holds, else the shortest that does."""
    letters = "".join("LG"[each] for each in full)
    return next(
        each
        for each in (stated, *(letters[:n] for n in range(1, len(letters))), letters)
        if each and all(letter == each[layer % len(each)] for layer, letter in enumerate(letters))
    )


def _period(marked: Sequence[bool], stated: int | None) -> int | None:
    """The n of "every n-th layer is marked", the stated one if it holds; None if no n holds."""
    periods = [*([stated] if stated else []), *range(1, len(marked) + 2)]
    return next((n for n in periods if marked and all(m == ((i + 1) % n == 0) for i, m in enumerate(marked))), None)


def _leading(kinds: Sequence[str], kind: str) -> int | None:
    """How many of the first layers are of a kind, where no others are; None where some are."""
    count = list(kinds).count(kind)
    return count if all(each == kind for each in kinds[:count]) else None


def _rope(filled: PreTrainedConfig) -> dict[str, Any]:
    """The keys of rotary positions, in the form of transformers 5 and in that of 4."""
    both = copy.deepcopy(getattr(filled, "rope_parameters", None))
    if not both:
        return {}
    # Gemma 3 has one for layers that see everything and one for those that see a window.
    kinds = {kind: each for kind, each in both.items() if isinstance(each, dict)} or {"full_attention": both}
    for each in kinds.values():
        each.pop("type", None)
        _say_attention_factor(each, filled)
    plain = kinds.get("full_attention") or next(iter(kinds.values()))
    if plain.get("rope_type") in _NOT_IN_4:
        return {"rope_parameters": both}
    old = {"rope_theta": plain["rope_theta"], "rope_scaling": _scaling(plain, filled)}
    if "sliding_attention" in kinds:
        old["rope_local_base_freq"] = kinds["sliding_attention"]["rope_theta"]
    if "partial_rotary_factor" in plain:
        old["partial_rotary_factor"] = plain["partial_rotary_factor"]
    if plain.get("rope_type") == "longrope":
        old["original_max_position_embeddings"] = plain["original_max_position_embeddings"]
    renamed = {key: plain[name] for key, name in _BOTH_NAMES.get(filled.model_type, {}).items() if name in plain}
    told = {"rope_parameters": both, **old, **renamed}
    return told if _keeps_kinds(filled, told, set(kinds)) else {"rope_parameters": both}


def _keeps_kinds(filled: PreTrainedConfig, told: Mapping[str, Any], kinds: set[str]) -> bool:
    """Whether transformers 5 still finds rotary positions of each kind of layers beside the keys of transformers 4."""
    if kinds == {"full_attention"}:
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of an old key, which may be what undoes them
        read = AutoConfig.for_model(**copy.deepcopy({**filled.to_dict(), **told})).rope_parameters or {}
    return kinds <= {kind for kind, each in read.items() if isinstance(each, dict)}


def _say_attention_factor(rope: dict[str, Any], filled: PreTrainedConfig) -> None:
    """Spell out longrope's factor of attention where transformers 4 would take it from the lengths instead."""
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    if rope.get("rope_type") != "longrope" or factor is None or original is None:
        return
    if factor == filled.max_position_embeddings / original:
        del rope["factor"]  # what both take where it is not given
    elif rope.get("attention_factor") is None:
        rope["attention_factor"] = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _scaling(rope: Mapping[str, Any], filled: PreTrainedConfig) -> dict[str, Any] | None:
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    rest = {key: value for key, value in rope.items() if key not in _OUTSIDE_SCALING and value is not None}
    if filled.model_type in _TYPE_ALONE:
        # Anything beyond what these families can say makes transformers 4 refuse the config, as it should.
        rest.pop("original_max_position_embeddings" if kind == "longrope" else "", None)
        return {"type": kind, **rest}
    return {"rope_type": kind, "type": kind, **rest}
