"""Whether surgery reads from a folder the model that transformers loads from it."""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)

from minitron_nas.architecture.config import with_sizes
from minitron_nas.architecture.costs import count_parameters
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import CheckpointError
from minitron_nas.execution.device import available_bytes
from minitron_nas.models.causal_lm import CausalLM, logits_of
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.checks import check_values
from minitron_nas.models.config import layer_lists
from minitron_nas.models.quiet import quiet_transformers
from minitron_nas.models.stock import filled_config, model_from_tensors, read_tensor
from minitron_nas.models.text_part import causal_lm_in, wrapper_in
from minitron_nas.progress import silent
from minitron_nas.storage.foreign import read_object

_NUM_TOKENS = 8
_TOLERANCE = 1e-4
"""Of the largest logit. Both models compute the same in float32; memory may lie differently."""
_MOST_BYTES = 8 << 30
_MEMORY_FRACTION = 0.5
_BYTES_PER_PARAMETER = 4
_SHOWN = 3


def check_agreement(checkpoint: Checkpoint) -> None:
    """Let a few tokens go through the model that surgery reads and through the one that `from_pretrained` loads.

    Of a wrapper the latter is the whole of it, with its other parts.

    The two are in memory one after the other, in float32. Of a model that takes more than 8 GiB so, or more than
    half of the memory that is free, both are cut to the first layers, at least one: embedding, head, final norm
    and these layers are compared. The other layers lie in the same files, which are chosen once for all, under
    names that the family's table accounts for.

    Args:
        checkpoint: The opened folder.

    Raises:
        CheckpointError: If transformers cannot load the folder, would initialise something at random, or computes
            something else or nothing finite.
    """
    shape = checkpoint.architecture.with_layers(range(_num_layers(checkpoint)))
    ids = torch.randint(0, shape.vocab_size, (1, _NUM_TOKENS), generator=torch.Generator().manual_seed(0))
    try:
        with quiet_transformers():
            config = _content(checkpoint, shape)
            read = logits_of(_as_surgery_reads(checkpoint, config, shape), ids)
            model, info = _as_transformers_loads(checkpoint, config, shape)
            loaded = logits_of(model, ids)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"transformers cannot load {checkpoint.path} ({type(error).__name__}: {reason}); see that "
            "AutoModelForCausalLM.from_pretrained loads it, or save it again with save_pretrained"
        ) from error
    if made_up := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"transformers finds no {', '.join(made_up[:_SHOWN])} in {checkpoint.path} and would make up its values at "
            "random; save the model again with save_pretrained, into an empty folder"
        )
    if not loaded.isfinite().all():
        check_values(checkpoint.path, checkpoint.headers, silent)
        raise CheckpointError(
            f"{checkpoint.path} computes NaN or infinity although every weight is finite; look for odd values in its "
            "config.json, such as rope parameters or norm epsilons"
        )
    difference = (loaded - read).abs().max().item()
    if not difference <= _TOLERANCE * loaded.abs().max().item():
        raise CheckpointError(
            f"{checkpoint.path} can be read in two ways: the logits of what from_pretrained loads differ by "
            f"{difference:.3g} from those of the weights in {', '.join(_files(checkpoint))}; load the model in "
            "transformers, save it with save_pretrained into an empty folder and give that"
        )


def _num_layers(checkpoint: Checkpoint) -> int:
    architecture, layout = checkpoint.architecture, checkpoint.layout
    if architecture.num_hidden_layers == 1:
        return 1
    one, two = (
        _BYTES_PER_PARAMETER * count_parameters(architecture.with_layers(range(number)), layout) for number in (1, 2)
    )
    room = min(_MOST_BYTES, _MEMORY_FRACTION * available_bytes(torch.device("cpu")))
    return min(architecture.num_hidden_layers, 1 + max(0, int((room - one) // (two - one))))


def _content(checkpoint: Checkpoint, shape: Architecture) -> dict[str, Any]:
    """Return a `config.json` of the first layers; the folder's own where they are all."""
    num_layers = checkpoint.architecture.num_hidden_layers
    if shape.num_hidden_layers == num_layers:
        return checkpoint.config
    filled = AutoConfig.for_model(**checkpoint.config).to_dict()
    lists = layer_lists(filled, num_layers, range(shape.num_hidden_layers))
    return with_sizes({**checkpoint.config, **lists}, shape, checkpoint.layout)


def _as_surgery_reads(checkpoint: Checkpoint, config: dict[str, Any], shape: Architecture) -> CausalLM:
    names = [place.name for place in checkpoint.layout.tensors(shape)]
    tensors = {name: read_tensor(checkpoint.headers[name]) for name in names}
    return model_from_tensors(config, tensors, torch.float32)


def _as_transformers_loads(
    checkpoint: Checkpoint, config: dict[str, Any], shape: Architecture
) -> tuple[CausalLM, dict[str, Any]]:
    is_cut, wrapper = shape != checkpoint.architecture, wrapper_in(checkpoint.path)
    kind = AutoModelForCausalLM if wrapper is None else AutoModelForImageTextToText
    whole = filled_config(config) if wrapper is None else _wrapper_config(checkpoint, config)
    loaded: Any = kind.from_pretrained(  # a pair, which its annotation does not know
        checkpoint.path,
        dtype=torch.float32,
        trust_remote_code=False,
        output_loading_info=True,
        **({"config": whole} if is_cut else {}),
    )
    model, info = loaded
    if wrapper is not None:
        info["missing_keys"] = wrapper.text_names(info["missing_keys"]).keys()
    return causal_lm_in(model), info


def _wrapper_config(checkpoint: Checkpoint, config: dict[str, Any]) -> PreTrainedConfig:
    """Return the config of a wrapper whose text part has the first layers only."""
    whole = AutoConfig.for_model(**read_object(checkpoint.path / "config.json"))
    text = whole.get_text_config()
    lists = layer_lists(text.to_dict(), text.num_hidden_layers, range(config["num_hidden_layers"]))
    for key, value in {**lists, "num_hidden_layers": config["num_hidden_layers"]}.items():
        setattr(text, key, value)
    return whole


def _files(checkpoint: Checkpoint) -> list[str]:
    names = sorted({header.file.name for header in checkpoint.headers.values()})
    return names if len(names) <= _SHOWN else [names[0], "...", names[-1]]
