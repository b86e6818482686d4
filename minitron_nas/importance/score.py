"""One forward-only pass over calibration text that scores every prunable part."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

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
    """Score hidden channels, FFN neurons, query heads, KV groups and layers in one pass.

    Every packed sequence is a sample. Per token and unit the raw score is: for channels the output
    of each norm that a layer's projections read; for neurons the input of the down projection; for
    query heads the L2 norm of the head's output before the output projection; for KV groups the L2
    norm of what the group's heads add to the residual stream. Layers get Block Importance,
    1 - mean cos(layer input, layer output).

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
            final_hidden(model, batch.input_ids.to(device), batch.position_ids.to(device))
            done += batch.num_tokens
            progress(done, calibration.num_tokens)
    model.train(training)
    return collector.scores()


class _Collector:
    """Accumulators of one pass, a few numbers per unit."""

    def __init__(self, architecture: Architecture, settings: ImportanceSettings) -> None:
        layers = range(architecture.num_hidden_layers)
        self._architecture, self._settings = architecture, settings
        self._hidden: dict[str, BatchAggregate] = {}
        self._neurons = [BatchAggregate() for _ in layers]
        self._heads = [BatchAggregate() for _ in layers]
        self._kv_groups = [BatchAggregate() for _ in layers]
        self._cosines = [BatchAggregate() for _ in layers]

    def add_hidden(self, norm: str, output: Tensor) -> None:
        aggregate = self._hidden.setdefault(norm, BatchAggregate())
        aggregate.add(over_sequence(output, self._settings.sequence_aggregation))

    def add_neurons(self, layer: int, inputs: Tensor) -> None:
        self._neurons[layer].add(over_sequence(inputs, self._settings.sequence_aggregation))

    def add_heads(self, layer: int, inputs: Tensor, projection: Tensor) -> None:
        shape = self._architecture
        batch, seq_len, _ = inputs.shape
        heads = inputs.view(batch, seq_len, shape.num_attention_heads, shape.head_dim).float().norm(dim=-1)
        self._heads[layer].add(over_sequence(heads, self._settings.sequence_aggregation))
        width = shape.heads_per_group * shape.head_dim
        contributions = [
            (inputs[..., start : start + width] @ projection[:, start : start + width].T).float().norm(dim=-1)
            for start in range(0, inputs.shape[-1], width)
        ]
        groups = torch.stack(contributions, dim=-1)
        self._kv_groups[layer].add(over_sequence(groups, self._settings.sequence_aggregation))

    def add_layer(self, layer: int, inputs: Tensor, output: Tensor) -> None:
        cosine = cosine_similarity(inputs.float(), output.float(), dim=-1)
        self._cosines[layer].add(cosine.mean(dim=1, keepdim=True))

    def scores(self) -> ImportanceScores:
        over = self._settings.batch_aggregation
        hidden = torch.stack([aggregate.score(over) for aggregate in self._hidden.values()]).sum(dim=0)
        cosines = torch.cat([aggregate.mean() for aggregate in self._cosines])
        return ImportanceScores(
            hidden=hidden,
            neurons=torch.stack([aggregate.score(over) for aggregate in self._neurons]),
            heads=torch.stack([aggregate.score(over) for aggregate in self._heads]),
            kv_groups=torch.stack([aggregate.score(over) for aggregate in self._kv_groups]),
            layers=1 - cosines,
        )


@contextmanager
def _hooks(model: Any, layout: Layout, collector: _Collector) -> Iterator[None]:
    """Measure at the places that the family table names, for the duration of the block."""
    modules = dict(model.named_modules())
    handles = []

    def before(name: str, action: Callable[[Tensor], None]) -> None:
        handles.append(modules[name].register_forward_pre_hook(lambda _, args: action(args[0])))

    def after(name: str, action: Callable[[Tensor], None]) -> None:
        handles.append(modules[name].register_forward_hook(lambda _, args, output: action(output)))

    def around(name: str, action: Callable[[Tensor, Tensor], None]) -> None:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            inputs = args[0] if args else kwargs["hidden_states"]
            action(inputs, output[0] if isinstance(output, tuple) else output)

        handles.append(modules[name].register_forward_hook(hook, with_kwargs=True))

    try:
        for layer in range(model.config.num_hidden_layers):
            for pattern in layout.hidden_norms():
                norm = pattern.format(layer=layer)
                after(norm, lambda output, norm=norm: collector.add_hidden(norm, output))  # type: ignore[misc]
            down = layout.output_projection(Axis.NEURONS).format(layer=layer)
            before(down, lambda inputs, layer=layer: collector.add_neurons(layer, inputs))  # type: ignore[misc]
            out = layout.output_projection(Axis.GROUP_HEADS).format(layer=layer)
            weight = modules[out].weight
            before(out, lambda inputs, layer=layer, weight=weight: collector.add_heads(layer, inputs, weight))  # type: ignore[misc]
            block = layout.layer_module.format(layer=layer)
            around(block, lambda inputs, output, layer=layer: collector.add_layer(layer, inputs, output))  # type: ignore[misc]
        yield
    finally:
        for handle in handles:
            handle.remove()
