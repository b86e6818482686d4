"""Hidden states of chosen places of a model, kept while it runs.

Place 0 is what the attention of the first layer reads, or what it has instead, place k what that of layer k
reads: the output of layer k - 1 after the norm that follows it, where the family has one there. The last place, the
number of layers, is what the output head reads. So "the output of a layer, after the norm" means one
thing for every layer and family, and embeddings have a place of their own.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TypeVar

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from minitron_nas.families.catalog import layout_of
from minitron_nas.models.causal_lm import CausalLM, decoder_of
from minitron_nas.models.layer_model import kinds_of

Result = TypeVar("Result")


class InnerStates:
    """Keeps the states of chosen places while something runs the model, and of no others."""

    def __init__(self, model: CausalLM, places: Iterable[int]) -> None:
        """Find the modules.

        Args:
            model: The model.
            places: From 0 to the number of layers.
        """
        self._kept: dict[int, Tensor] = {}
        self._decoder, self._last = decoder_of(model), model.config.num_hidden_layers
        wanted = set(places)
        self._wants_last = self._last in wanted
        self._readers = {place: _first_reader(model, place) for place in wanted - {self._last}}

    def during(self, run: Callable[[], Result]) -> tuple[Result, dict[int, Tensor]]:
        """Run something that runs the model, whatever wraps it, and return its result and the states.

        Args:
            run: Runs the model once.

        Returns:
            The result, and by place (batch, seq_len, hidden_size); gradients reach the model.
        """
        with ExitStack() as hooks:
            for place, module in self._readers.items():
                hooks.enter_context(module.register_forward_pre_hook(self._keeper(place)))
            if self._wants_last:
                hooks.enter_context(self._decoder.register_forward_hook(self._keep_last))
            result = run()
        states = dict(self._kept)
        self._kept.clear()
        return result, states

    def _keeper(self, place: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._kept[place] = args[0]

        return keep

    def _keep_last(self, _: nn.Module, __: tuple[Tensor, ...], output: BaseModelOutput) -> None:
        assert output.last_hidden_state is not None
        self._kept[self._last] = output.last_hidden_state


def _first_reader(model: CausalLM, layer: int) -> nn.Module:
    layout = layout_of(model.config.model_type)
    first, *_ = layout.readers(kinds_of(model, layout)[layer])
    return model.get_submodule(layout.module_of(first).format(layer=layer))
