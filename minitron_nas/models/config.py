"""Reading `config.json`: which family a folder belongs to, and its shape."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.kinds import may_lack
from minitron_nas.architecture.layout import Axis, Layout
from minitron_nas.architecture.rules import require_attention, require_keys, require_latents
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import CheckpointError, MinitronNasError, TeacherNotFoundError
from minitron_nas.models.outline import Outline
from minitron_nas.models.relatives import known_layout
from minitron_nas.models.special_floats import plain_floats
from minitron_nas.models.text_part import read_text_headers, text_config
from minitron_nas.models.tower import tower_in
from minitron_nas.storage.foreign import read_object, what_lies_instead

_BASES = ("rope_theta", "rope_local_base_freq", "rotary_emb_base")
_ROPE = ("rope_parameters", "rope_scaling")
LISTS_OF_NUMBERS = ("attn_layer_indices", "mlp_only_layers", "moe_layers")
"""Lists of a config that name layers by their numbers, however many there are."""
_CAUSAL_CLASSES = ("ForCausalLM", "LMHeadModel")
_KINDS_OF_LAYERS = ("layer_types", "layers_block_type")
"""Keys under which a config lists a word for each layer; of a family that has one, transformers may take the other."""
_HEADS = "num_attention_heads"
_LAYERS = "num_hidden_layers"
_LABELS = "num_labels"
"""No size of a causal language model, but transformers makes a table of as many entries."""
_LEFT_TO_TRANSFORMERS = "auto"
_MOST_LAYERS = 10_000
_LONGEST_DIMENSION = 10_000_000
"""Bounds for a config without weights beside it, so that nothing endless is made of a number in it."""
_UNPACKING = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}
"""What transformers dequantises as it reads, by its settings, also without a GPU."""


def read_config(path: Path) -> dict[str, Any]:
    """Read a folder's `config.json` as it stands; of a wrapper, the stock config of its text part.

    Kinds of layers that stand under another key than the family's own stand under that, as transformers reads them.

    Raises:
        TeacherNotFoundError: If the folder does not exist.
        CheckpointError: If it has no `config.json`, or one that is not a JSON object, or transformers refuses that of
            a wrapper.
        UnknownFamilyError: If no table describes the text part of a wrapper.
    """
    if not path.is_dir():
        raise TeacherNotFoundError(f"{path} is not a folder; give a folder that save_pretrained wrote")
    file = path / "config.json"
    if not file.is_file():
        instead = what_lies_instead(path) or "has no config.json; give a folder that save_pretrained wrote"
        raise CheckpointError(f"{path} {instead}")
    return _under_own_keys(text_config(file, plain_floats(read_object(file))))


def read_architecture(path: Path, config: dict[str, Any]) -> tuple[Architecture, Layout]:
    """Read the shape of a folder and find its family.

    transformers fills in what `config.json` leaves out, so that a shape never rests on our defaults. Before it does,
    the sizes are held against the header of the weights, so that nothing is made of a size that no tensor has.

    Args:
        path: The folder.
        config: The content of its `config.json`.

    Raises:
        CheckpointError: If it is not a causal language model in plain floating point, a size is beyond what the
            weights hold, the folder can be read in two ways, or transformers refuses the config.
        UnknownFamilyError: If no table describes its model type.
        InvalidArchitectureError: If the shape cannot exist.
    """
    layout = _readable_layout(path, config)
    _refuse_other_readings(path, config)
    headers = read_text_headers(path)
    longest = max((length for header in headers.values() for length in header.shape), default=0)
    told = f"by the weights beside it: {len(headers)} tensors, none longer than {longest}; copy both again"
    _check_sizes(path, config, layout, len(headers), longest, told)
    return _filled_architecture(path, config, layout), layout


def read_outline(path: Path, name: Path | str) -> Outline:
    """Read the shape of a model whose `config.json` is there and whose weights need not be.

    Args:
        path: The folder of the `config.json`.
        name: What the model is called.

    Raises:
        TeacherNotFoundError: If the folder does not exist.
        CheckpointError: If it is not a causal language model in plain floating point, a size is beyond all models, or
            transformers refuses the config.
        UnknownFamilyError: If no table describes its model type.
        InvalidArchitectureError: If the shape cannot exist.
    """
    config = read_config(path)
    layout = _readable_layout(path, config)
    _check_sizes(path, config, layout, _MOST_LAYERS, _LONGEST_DIMENSION, "no known model has more")
    return Outline.of_config(name, config, _filled_architecture(path, config, layout), layout, tower_in(path))


def layer_lists(config: Mapping[str, Any], num_layers: int, kept_layers: Sequence[int]) -> dict[str, list[Any]]:
    """Return the lists of a config that hold one entry per layer, with the entries of some layers only.

    Lists that name layers by their numbers are none of them.

    Args:
        config: The content of a `config.json` with all that transformers fills in.
        num_layers: How many layers the config describes.
        kept_layers: Ascending indices of layers.
    """
    return {
        key: [value[layer] for layer in kept_layers]
        for key, value in config.items()
        if isinstance(value, list) and "layer" in key and key not in LISTS_OF_NUMBERS and len(value) == num_layers
    }


def _under_own_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the kinds of its layers under one key: another that transformers takes goes before it."""
    model_type = str(config.get("model_type"))
    known = CONFIG_MAPPING[model_type].attribute_map if model_type in CONFIG_MAPPING else {}
    others = {key: known[key] for key in _KINDS_OF_LAYERS if key in known and key in config}
    kept = {key: value for key, value in config.items() if key not in others}
    return {**kept, **{own: config[key] for key, own in others.items()}}


def _readable_layout(path: Path, config: dict[str, Any]) -> Layout:
    """Return the table of a config's family, if it is one of a model in plain floating point."""
    _refuse_other_tasks(path, config)
    _check_bases(path, config)
    layout = known_layout(config)
    if packing := config.get("quantization_config"):
        method = str(packing.get("quant_method")) if isinstance(packing, dict) else ""
        named = f" (quant_method {method!r})" if method else ""
        raise CheckpointError(
            f"{path} holds a quantised model{named}; pruning needs plain floating-point weights: give the model that "
            f"it was quantised from, or dequantise it in transformers and save it again{_unpacking(method)}"
        )
    return layout


def _unpacking(method: str) -> str:
    if method not in _UNPACKING:
        return ""
    return (
        ": AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config="
        f"{_UNPACKING[method]}(dequantize=True)) turns it into bfloat16, which needs no GPU; give it and its tokenizer "
        "as a pair, or save both with save_pretrained of transformers 5.24 or newer"
    )


def _filled_architecture(path: Path, config: dict[str, Any], layout: Layout) -> Architecture:
    try:
        filled = AutoConfig.for_model(**copy.deepcopy(config)).to_dict()
        architecture = architecture_of(filled, layout)
    except MinitronNasError:
        raise
    except Exception as error:
        raise CheckpointError(f"transformers refuses {path / 'config.json'}: {' '.join(str(error).split())}") from error
    require_attention(architecture, layout)
    require_latents(architecture)
    require_keys(architecture)
    return architecture


def _refuse_other_tasks(path: Path, config: dict[str, Any]) -> None:
    classes = config.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(f"{path / 'config.json'}: architectures={classes!r} must be a list of names of classes")
    if classes and not any(name.endswith(_CAUSAL_CLASSES) for name in classes):
        raise CheckpointError(
            f"{path} holds a {', '.join(classes)}, which is no causal language model; "
            "minitron_nas prunes ...ForCausalLM classes only"
        )


def _refuse_other_readings(path: Path, config: dict[str, Any]) -> None:
    """Refuse a folder of which one reader takes other files than another."""
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{path} holds a model and an adapter (adapter_config.json); transformers with peft loads both, what is "
            "cut would be the model alone: merge them with merge_and_unload() and save_pretrained, or remove the "
            "adapter's files"
        )
    if files := config.get("transformers_weights"):
        raise CheckpointError(
            f"{path / 'config.json'} names weights of its own (transformers_weights={files!r}), which only new "
            "versions of transformers read; load the model there and save it again with save_pretrained"
        )
    if files := config.get("configuration_files"):
        raise CheckpointError(
            f"{path / 'config.json'} names other configs for other versions of transformers (configuration_files="
            f"{files!r}); load the model in transformers and save it again with save_pretrained"
        )


def _check_bases(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse rotary positions of which there is no angle: some machines compute finite numbers even of these."""
    for key, value in _bases(config):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
            raise CheckpointError(f"{path / 'config.json'}: {key}={value!r} must be a number above 0")


def _bases(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if key in _BASES and value is not None:
            yield key, value
        elif key in _ROPE and isinstance(value, Mapping):
            for each in (value, *(kind for kind in value.values() if isinstance(kind, Mapping))):
                yield from _bases(each)


def _check_sizes(path: Path, config: dict[str, Any], layout: Layout, most_layers: int, longest: int, told: str) -> None:
    """Refuse sizes that no tensor of the model could have."""
    axes = {axis.value for axis in layout.axes()} & set(Architecture.__slots__)
    others = (layout.mixer_width, _LAYERS, _HEADS, Axis.HEAD_DIM.value, _LABELS)
    fixed = layout.fixed_keys_of(dict.fromkeys(layout.fixed_keys(), 1) | config)
    sizes = {*axes, *layout.shape_fields(), *fixed, *others}
    absent = may_lack(layout.kinds)
    for field in sorted(sizes):
        names, most = layout.config_names(field), most_layers if field == _LAYERS else longest
        least = 0 if field in (_LABELS, Axis.EXPERTS) or not absent.isdisjoint(names) else 1
        for place, key in enumerate(names):
            value = config.get(key)
            if value is None or value == _LEFT_TO_TRANSFORMERS:
                continue
            # What a size is called beside its first name may be a list of every layer's.
            for each in value if place and isinstance(value, list) else [value]:
                if not isinstance(each, int) or isinstance(each, bool):
                    raise CheckpointError(f"{path / 'config.json'}: {key}={value!r} must be an integer")
                if not least <= each <= most:
                    raise CheckpointError(f"{path / 'config.json'}: {key}={value} must lie in {least}..{most} {told}")
