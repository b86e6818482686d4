"""One layer of a model as a stock causal LM of its own, run on hidden states that are given.

transformers builds masks, rotary positions and document borders for it as for the whole model, so
that nothing here knows a family. Its vocabulary is a few rows of zeros, because nothing reads it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from minitron_nas.architecture.config import architecture_of, with_sizes
from minitron_nas.architecture.kinds import shares
from minitron_nas.architecture.layout import HIDDEN, VOCAB, Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.models.borders import border_masks
from minitron_nas.models.causal_lm import CausalLM, decoder_of
from minitron_nas.models.config import layer_lists
from minitron_nas.models.stock import model_from_tensors

LayerOutput: TypeAlias = Tensor | tuple[Any, ...]
"""Hidden states, alone or before whatever else a module puts out."""

_NUM_ROWS = 8
_TOKEN_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
"""Rows that there are; some configs have to name a first token, and a row that pads would be zero."""


def why_not_alone(layout: Layout, architecture: Architecture) -> str | None:
    """Say why the layers of a model cannot run one at a time on hidden states, or None where they can.

    Args:
        layout: The table of the family.
        architecture: The model's shape.
    """
    if any(layout.is_of_all_layers(row) and row.exists(architecture) for row in layout.rows):
        return f"every layer of this {layout.model_type} reads embeddings of its own beside hidden states"
    if any(shares(kind) for kind in architecture.kinds):
        return f"some layers of this {layout.model_type} read the keys and values of others"
    return None


def layer_model(
    read: Callable[[str], Tensor],
    config: Mapping[str, Any],
    architecture: Architecture,
    layout: Layout,
    layer: int,
    dtype: torch.dtype,
    embedding: Tensor | None = None,
) -> CausalLM:
    """Build a stock causal LM of one layer of a model, on the CPU.

    Args:
        read: Gives a tensor of the whole model, by its name in the table; `__getitem__` of a mapping will do.
        config: The whole model's `config.json`.
        architecture: The whole model's shape.
        layout: The table of its family.
        layer: Which layer.
        dtype: Of the weights.
        embedding: (num_rows, hidden_size), what stands for the token embedding; a few rows of zeros by default.

    Raises:
        RuntimeError: If tensors are missing or do not fit; that is a defect of the family table.
    """
    if embedding is None:
        embedding = torch.zeros(_NUM_ROWS, architecture.hidden_size, dtype=dtype)
    filled = AutoConfig.for_model(**config).to_dict()
    alone = replace(architecture.with_layers([layer]), vocab_size=len(embedding))
    content = {
        **with_sizes({**config, **layer_lists(filled, architecture.num_hidden_layers, [layer])}, alone, layout),
        **dict.fromkeys(layout.config_names("vocab_size"), len(embedding)),
        **_TOKEN_IDS,
    }
    tensors = {}
    for place in layout.tensors(alone):
        if layout.is_head(place.row):
            tensors[place.name] = torch.zeros_like(embedding)
        elif place.row.dims == (VOCAB, HIDDEN):
            tensors[place.name] = embedding
        elif VOCAB in place.row.dims:
            tensors[place.name] = torch.zeros(place.row.shape(alone), dtype=dtype)
        else:
            tensors[place.name] = read(place.row.name.format(layer=layer, expert=place.expert))
    model = model_from_tensors(content, tensors, dtype)
    model.eval()
    return model


def run_layer(model: CausalLM, layout: Layout, states: Tensor, position_ids: Tensor) -> Tensor:
    """Run one batch of hidden states through a model of one layer, hooks on it and on its final norm too.

    Args:
        model: What `layer_model` returned, on its device.
        layout: The table of its family.
        states: (batch, seq_len, hidden_size), what the layer reads, on the model's device.
        position_ids: (batch, seq_len), restarting at each document, on the same device.

    Returns:
        (batch, seq_len, hidden_size), what the layer puts out.
    """
    outputs: list[Tensor] = []

    def give(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    def take(_: nn.Module, __: tuple[Any, ...], output: LayerOutput) -> None:
        outputs.append(states_of(output))

    module = decoder_layers(model, layout, [0])[0]
    # Prepended, so that hooks that measure are told what the layer reads.
    giving = module.register_forward_pre_hook(give, prepend=True, with_kwargs=True)
    with giving, module.register_forward_hook(take):
        # The embeddings are given for their shape and type alone: models may scale them or add to them.
        masks = border_masks(model, position_ids)
        decoder_of(model)(inputs_embeds=states, position_ids=position_ids, use_cache=False, **masks)
    return outputs[0]


def embed(model: CausalLM, layout: Layout, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Return what the first layer of a model reads, (batch, seq_len, hidden_size), without running the layer.

    Args:
        model: A causal LM on its device.
        layout: The table of its family.
        input_ids: (batch, seq_len), rows of its embedding.
        position_ids: (batch, seq_len), restarting at each document.
    """
    return input_of(
        decoder_layers(model, layout, [0])[0],
        lambda: decoder_of(model)(input_ids=input_ids, position_ids=position_ids, use_cache=False),
    )


def input_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """Return what a module is about to read when something runs that contains it, and run no further.

    Args:
        module: The module.
        run: Calls what contains it; what it returns is not looked at.

    Returns:
        (batch, seq_len, size), or with the first two run together where the module is given them so.
    """

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _ReachedError(layer_input(args, kwargs))

    with module.register_forward_pre_hook(stop, with_kwargs=True):
        try:
            run()
        except _ReachedError as reached:
            return reached.states
    raise AssertionError("the module was not reached")


def release_weights(model: nn.Module) -> None:
    """Free a model's weights at once, even where its modules refer to one another; it cannot be used any more."""
    model.to("meta")


class _ReachedError(Exception):
    """Carries what a module is about to read out of a forward pass."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def layer_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the hidden states that a module is called with: its first argument, or one by name.

    Args:
        args: What it is called with, as hooks are told.
        kwargs: The same by name.
    """
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def states_of(output: LayerOutput) -> Tensor:
    """Return the hidden states that a module puts out, alone or before others."""
    return output[0] if isinstance(output, tuple) else output


def kinds_of(model: CausalLM, layout: Layout) -> Sequence[str]:
    """Return the kind of each layer of a loaded model, the same empty word where all are alike.

    Args:
        model: A causal LM.
        layout: The table of its family.
    """
    return architecture_of(model.config.to_dict(), layout).kinds


def decoder_layers(model: CausalLM, layout: Layout, layers: Iterable[int]) -> list[nn.Module]:
    """Return some decoder layers of a loaded model.

    Args:
        model: A causal LM.
        layout: The table of its family.
        layers: Indices of the layers, in the order in which they are returned.
    """
    return [model.get_submodule(layout.layer_module.format(layer=layer)) for layer in layers]
