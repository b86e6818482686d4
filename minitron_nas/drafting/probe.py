"""`Probe`: a tiny random model, what it stores, and what its modules read and put out on a few tokens."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.storage.weights import read_headers
from minitron_nas.testing.subject import plain_experts
from minitron_nas.testing.tiny import tiny_model

_NUM_TOKENS = 7
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Call:
    """The first call of a module.

    Attributes:
        order: How many modules were called before it.
        read: The first tensor that it was given, None if there is none.
        said: The first tensor that it returned.
        is_tuple: Whether it returned a tuple.
    """

    order: int
    read: Tensor | None
    said: Tensor | None
    is_tuple: bool


@dataclass(frozen=True, slots=True)
class Probe:
    """A tiny random model that has run once.

    Attributes:
        content: Its config.
        model: In memory, float32.
        stored: Shapes of what it stores, by the names in its file.
        homes: Names of the parameters in memory, by those in the file; without what memory holds otherwise.
        calls: First calls by the module's name, in the order of the calls.
        prompt: (1, seq_len), what it was run on.
    """

    content: Mapping[str, Any]
    model: CausalLM
    stored: Mapping[str, tuple[int, ...]]
    homes: Mapping[str, str]
    calls: Mapping[str, Call]
    prompt: Tensor

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Probe":
        """Build, run and store a model.

        Args:
            content: Its config.

        Raises:
            Exception: Whatever transformers raises where it does not make such a model, or cannot run it.
        """
        model = plain_experts(tiny_model(AutoConfig.for_model(**content)))
        table = embedding_of(model)
        prompt = torch.randint(3, len(table), (1, _NUM_TOKENS), generator=torch.Generator().manual_seed(0))
        calls = _run(model, prompt)
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            stored = {name: tuple(header.shape) for name, header in read_headers(Path(folder)).items()}
            homes = _homes(model, folder)
        return cls(dict(content), model, stored, homes, calls, prompt)

    @property
    def buffers(self) -> frozenset[str]:
        """Names of what it stores and does not train."""
        return frozenset(name for name, _ in self.model.named_buffers() if name in self.stored)

    @property
    def num_layers(self) -> int:
        """How many decoder layers it has."""
        return int(self.model.config.num_hidden_layers)


def embedding_of(model: CausalLM) -> Tensor:
    """Return a model's token embedding, (vocab_size, hidden_size)."""
    weight = model.get_input_embeddings().get_parameter("weight")
    return weight.detach()


def row_name(name: str) -> tuple[str, int | None]:
    """Return the name of a table's row for a tensor, and the layer that it belongs to.

    Args:
        name: Of the tensor, in a file; its first number is the layer, its second the expert.
    """
    found = _NUMBER.search(name)
    if found is None:
        return name, None
    general = f"{name[: found.start()]}{{layer}}{name[found.end() :]}"
    return _NUMBER.sub("{expert}", general, count=1), int(found[0])


def same_numbers(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors hold the same numbers, however they are laid out."""
    if one is None or other is None or one.numel() != other.numel():
        return False
    flat, other_flat = one.flatten(), other.flatten()
    return torch.equal(flat, other_flat) or torch.equal(flat.sort().values, other_flat.sort().values)


@torch.no_grad()
def _run(model: CausalLM, prompt: Tensor) -> dict[str, Call]:
    orders: dict[str, int] = {}
    calls: dict[str, Call] = {}
    handles = []

    def enter(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            orders.setdefault(name, len(orders))

        return note

    def leave(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            read, said = _first((*args, *kwargs.values())), _first(output)
            calls.setdefault(name, Call(orders[name], read, said, isinstance(output, tuple)))

        return note

    for name, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(enter(name)),
            module.register_forward_hook(leave(name), with_kwargs=True),
        ]
    try:
        model(input_ids=prompt, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return dict(sorted(calls.items(), key=lambda item: item[1].order))


def _first(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple | list):
        return next((found for inner in value if (found := _first(inner)) is not None), None)
    if isinstance(value, Mapping):
        return _first(tuple(value.values()))
    return None


def _homes(model: CausalLM, folder: str) -> dict[str, str]:
    """Find each stored tensor in memory, by its name or else by its numbers."""
    from safetensors.torch import load_file

    parameters = dict(model.named_parameters(remove_duplicate=False))
    homes: dict[str, str] = {}
    for file in Path(folder).glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if name in parameters:
                homes[name] = name
                continue
            twin = next(
                (n for n, p in parameters.items() if p.shape == tensor.shape and torch.equal(p.detach(), tensor)), None
            )
            if twin is not None:
                homes[name] = twin
    return homes
