"""One forward-only pass over calibration text that scores every prunable part."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, linear

from minitron_nas.architecture.layout import Axis, Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.signals import final_hidden
from minitron_nas.distillation.tokens import PackedTokens
from minitron_nas.importance.aggregation import BatchAggregate, over_sequence
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.progress import Progress, silent


@torch.no_grad()
def score_importance(
    model: Any,
    architecture: Architecture,
    layout: Layout,
    calibration: PackedTokens,
    settings: ImportanceSettings,
    batch_sequences: int = 4,
    progress: Progress = silent,
) -> ImportanceScores:
    """Score hidden channels, FFN neurons, query heads, KV groups, experts and layers in one pass.

    Every packed sequence is a sample. Per token and unit the raw score is: for channels what the
    attention and the FFN of each layer read (the output of the norm before them, where there is
    one); for neurons the input of the down projection; for query heads the L2 norm of the head's
    output before the output projection; for KV groups the L2 norm of what the group's heads add to
    the residual stream; for experts the L2 norm of what the expert adds, 0 for tokens that are not
    sent to it. Layers get Block Importance, 1 - mean cos(layer input, layer output).

    Args:
        model: A causal LM on its device.
        architecture: Its shape.
        layout: Its family table; says where to measure.
        calibration: The text.
        settings: The two aggregations.
        batch_sequences: Sequences of one forward pass.
        progress: Told about tokens.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 2.2; KV groups after the
    independent KV-head contribution of Puzzle (arXiv 2411.19146).
    """
    collector = _Collector(architecture, settings)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    done = 0
    with _hooks(model, layout, collector):
        for _, batch in calibration.batches(batch_sequences):
            collector.batch_shape = tuple(batch.input_ids.shape)
            final_hidden(model, batch.input_ids.to(device), batch.position_ids.to(device))
            done += batch.num_tokens
            progress(done, calibration.num_tokens)
    model.train(training)
    return collector.scores()


class _Collector:
    """Accumulators of one pass, a few numbers per unit."""

    def __init__(self, architecture: Architecture, settings: ImportanceSettings) -> None:
        layers = range(architecture.num_hidden_layers)
        experts = range(architecture.num_experts)
        self.batch_shape: tuple[int, ...] = ()
        self._architecture, self._settings = architecture, settings
        self._hidden: dict[str, BatchAggregate] = {}
        self._neurons = [BatchAggregate() for _ in layers]
        self._expert_neurons = [[BatchAggregate() for _ in experts] for _ in layers]
        self._heads = [BatchAggregate() for _ in layers]
        self._kv_groups = [BatchAggregate() for _ in layers]
        self._experts = [BatchAggregate() for _ in layers]
        self._cosines = [BatchAggregate() for _ in layers]

    def add_hidden(self, place: str, states: Tensor) -> None:
        self._add(self._hidden.setdefault(place, BatchAggregate()), states)

    def add_neurons(self, layer: int, inputs: Tensor) -> None:
        self._add(self._neurons[layer], inputs)

    def add_heads(self, layer: int, inputs: Tensor, projection: Tensor) -> None:
        shape = self._architecture
        heads = inputs.reshape(*self.batch_shape, shape.num_attention_heads, shape.head_dim).float().norm(dim=-1)
        self._add(self._heads[layer], heads)
        width = shape.heads_per_group * shape.head_dim
        contributions = [
            (inputs[..., start : start + width] @ projection[:, start : start + width].T).float().norm(dim=-1)
            for start in range(0, inputs.shape[-1], width)
        ]
        self._add(self._kv_groups[layer], torch.stack(contributions, dim=-1))

    def add_experts(self, layer: int, module: Any, inputs: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """Compute again, expert by expert, what the module computes.

        Args:
            layer: The layer.
            module: Holds `gate_up_proj` (num_experts, 2 x neurons, hidden_size) and `down_proj`.
            inputs: (num_tokens, hidden_size).
            chosen: (num_tokens, num_experts_per_tok), the experts that each token is sent to.
            weights: The same shape, the router's weights.
        """
        added = inputs.new_zeros((len(inputs), self._architecture.num_experts), dtype=torch.float32)
        for expert, aggregate in enumerate(self._expert_neurons[layer]):
            tokens, choice = torch.where(chosen == expert)
            gate, up = linear(inputs[tokens], module.gate_up_proj[expert]).chunk(2, dim=-1)
            active = module.act_fn(gate) * up
            neurons = active.new_zeros((len(inputs), active.shape[-1]))
            neurons[tokens] = active
            self._add(aggregate, neurons)
            output = linear(active, module.down_proj[expert]) * weights[tokens, choice, None]
            added[tokens, expert] = output.float().norm(dim=-1)
        self._add(self._experts[layer], added)

    def add_layer(self, layer: int, inputs: Tensor, output: Tensor) -> None:
        cosine = cosine_similarity(inputs.float(), output.float(), dim=-1)
        self._cosines[layer].add(cosine.mean(dim=1, keepdim=True))

    def scores(self) -> ImportanceScores:
        has_experts = bool(self._architecture.num_experts)
        num_layers = self._architecture.num_hidden_layers
        cosines = torch.cat([aggregate.mean() for aggregate in self._cosines])
        return ImportanceScores(
            hidden=self._stacked(list(self._hidden.values())).sum(dim=0),
            neurons=torch.stack([self._stacked(experts) for experts in self._expert_neurons])
            if has_experts
            else self._stacked(self._neurons),
            heads=self._stacked(self._heads),
            kv_groups=self._stacked(self._kv_groups),
            experts=self._stacked(self._experts) if has_experts else torch.zeros(num_layers, 0),
            layers=1 - cosines,
        )

    def _add(self, aggregate: BatchAggregate, activations: Tensor) -> None:
        """Add raw scores of shape (batch, seq_len, units), or with the first two run together."""
        shaped = activations.reshape(*self.batch_shape, -1)
        aggregate.add(over_sequence(shaped, self._settings.sequence_aggregation))

    def _stacked(self, aggregates: list[BatchAggregate]) -> Tensor:
        return torch.stack([aggregate.score(self._settings.batch_aggregation) for aggregate in aggregates])


@contextmanager
def _hooks(model: Any, layout: Layout, collector: _Collector) -> Iterator[None]:
    """Measure at the places that the family table names, for the duration of the block."""
    modules = dict(model.named_modules())
    handles = []

    def before(name: str, action: Callable[[Any, Any], None]) -> None:
        handles.append(modules[name].register_forward_pre_hook(action))

    def around(name: str, action: Callable[[Tensor, Tensor], None]) -> None:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            inputs = args[0] if args else kwargs["hidden_states"]
            action(inputs, output[0] if isinstance(output, tuple) else output)

        handles.append(modules[name].register_forward_hook(hook, with_kwargs=True))

    def measure(layer: int) -> None:
        for reader in layout.readers():
            name = layout.module_of(reader).format(layer=layer)
            before(name, lambda _, args, name=name: collector.add_hidden(name, args[0]))  # type: ignore[misc]
        out = layout.writer(Axis.GROUP_HEADS)
        before(
            layout.module_of(out).format(layer=layer),
            lambda module, args: collector.add_heads(
                layer, args[0], module.weight.T if layout.conv1d else module.weight
            ),
        )
        down = layout.module_of(layout.writer(layout.neuron_axis))
        if layout.has_experts:
            experts = down.partition(".{expert}")[0].format(layer=layer)
            before(experts, lambda module, args: collector.add_experts(layer, module, *args))
        else:
            before(down.format(layer=layer), lambda _, args: collector.add_neurons(layer, args[0]))
        block = layout.layer_module.format(layer=layer)
        around(block, lambda inputs, output: collector.add_layer(layer, inputs, output))

    try:
        for layer in range(model.config.num_hidden_layers):
            measure(layer)
        yield
    finally:
        for handle in handles:
            handle.remove()
