"""One layer of a model as a stock causal LM of its own, run on hidden states that are given.

What some layers read beside these comes along: tokens, where every layer has an embedding of its own, and the keys and
values of a layer before.

transformers builds masks, rotary positions and document borders for it as for the whole model, so
that nothing here knows a family. Its vocabulary is a few rows of zeros, because nothing reads it.
"""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from minitron_nas.architecture.config import architecture_of, with_sizes
from minitron_nas.architecture.kinds import shares
from minitron_nas.architecture.layout import HIDDEN, LAYERS_VOCAB, VOCAB, Axis, Layout, TensorRow
from minitron_nas.architecture.spec import Architecture
from minitron_nas.models.attention import attend_by_document
from minitron_nas.models.borders import border_masks
from minitron_nas.models.causal_lm import CausalLM, decoder_of
from minitron_nas.models.config import layer_lists
from minitron_nas.models.stock import model_from_tensors

KeysAndValues: TypeAlias = dict[str, tuple[Tensor, Tensor]]
"""Keys and values, (batch, num_kv_heads, seq_len, head_dim) each, by how layers attend, in the config's words."""

LayerOutput: TypeAlias = Tensor | tuple[Any, ...]
"""Hidden states, alone or before whatever else a module puts out."""

_NUM_ROWS = 8
_TOKEN_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
"""Rows that there are; some configs have to name a first token, and a row that pads would be zero."""


def layer_model(
    read: Callable[[str], Tensor],
    config: Mapping[str, Any],
    architecture: Architecture,
    layout: Layout,
    layer: int,
    dtype: torch.dtype,
    embedding: Tensor | None = None,
    own_embedding: Tensor | None = None,
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
        own_embedding: (num_rows, size), what stands for the layer's part of an embedding of all layers, as many rows.

    Raises:
        RuntimeError: If tensors are missing or do not fit; that is a defect of the family table.
    """
    if embedding is None:
        embedding = torch.zeros(_NUM_ROWS, architecture.hidden_size, dtype=dtype)
    filled = AutoConfig.for_model(**config).to_dict()
    alone = replace(architecture.with_layers([layer]), vocab_size=len(embedding))
    own_vocabulary = {LAYERS_VOCAB} & layout.fixed_keys()
    content = {
        **with_sizes({**config, **layer_lists(filled, architecture.num_hidden_layers, [layer])}, alone, layout),
        **dict.fromkeys((*layout.config_names("vocab_size"), *own_vocabulary), len(embedding)),
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
        elif place.row.counts_tokens:
            none = torch.zeros(len(embedding), place.row.shape(alone)[-1], dtype=dtype)
            tensors[place.name] = none if own_embedding is None else own_embedding
        else:
            whole = read(place.row.name.format(layer=layer, expert=place.expert))
            tensors[place.name] = part_of_layer(whole, place.row, architecture, layer)
    model = model_from_tensors(content, tensors, dtype)
    if any(shares(kind) for kind in architecture.kinds):  # where the whole model attends by masks
        attend_by_document(model, wanted=False)
    model.eval()
    return model


def part_of_layer(tensor: Tensor, row: TensorRow, architecture: Architecture, layer: int) -> Tensor:
    """Return what a layer has of a tensor in which every layer has a block; all of any other tensor.

    Args:
        tensor: The tensor, or some of its rows.
        row: Its line of the table, in which layers are the slowest factor of a dimension.
        architecture: The whole model's shape.
        layer: Which layer.
    """
    for number, dimension in enumerate(row.dims):
        if Axis.LAYERS in dimension:
            tensor = tensor.chunk(architecture.num_hidden_layers, number)[layer].contiguous()
    return tensor


def run_layer(
    model: CausalLM,
    layout: Layout,
    states: Tensor,
    position_ids: Tensor,
    input_ids: Tensor | None = None,
    shared: KeysAndValues | None = None,
) -> Tensor:
    """Run one batch of hidden states through a model of one layer, hooks on it and on its final norm too.

    Args:
        model: What `layer_model` returned, on its device.
        layout: The table of its family.
        states: (batch, seq_len, hidden_size), what the layer reads, on the model's device.
        position_ids: (batch, seq_len), restarting at each document, on the same device.
        input_ids: (batch, seq_len), rows of the model's embeddings, where the layer has one of its own.
        shared: The keys and values that it may read; gets those that it computes for layers behind it.

    Returns:
        (batch, seq_len, hidden_size), what the layer puts out.
    """
    outputs: list[Tensor] = []
    kept: list[MutableMapping[str, tuple[Tensor, Tensor]]] = []

    def give(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if shared is not None and kwargs.get("shared_kv_states") is not None:
            kept.append(kwargs["shared_kv_states"])
            kept[0].update(shared)
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    def take(_: nn.Module, __: tuple[Any, ...], output: LayerOutput) -> None:
        outputs.append(states_of(output))

    module = decoder_layers(model, layout, [0])[0]
    # Prepended, so that hooks that measure are told what the layer reads.
    giving = module.register_forward_pre_hook(give, prepend=True, with_kwargs=True)
    with giving, module.register_forward_hook(take):
        # Embeddings are given for their shape and type alone, and for what the layer makes of them beside hidden
        # states: models may scale them or add to them.
        read = {"inputs_embeds": states} if input_ids is None else {"input_ids": input_ids}
        masks = border_masks(model, position_ids)
        decoder_of(model)(**read, position_ids=position_ids, use_cache=False, **masks)
    if shared is not None and kept:
        shared.update(kept[0])
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
