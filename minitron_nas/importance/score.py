"""One forward-only pass over calibration text that scores every prunable part, at once or layer by layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from minitron_nas.architecture.layout import Axis, Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.importance.aggregation import over_sequence, sample_sums
from minitron_nas.importance.experts import expert_neurons, expert_outputs, sent_to
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.importance.sums import BATCH_SEQUENCES, Sums, added, hidden_place, scores_of, text_shards
from minitron_nas.importance.sweep import Section, one_pass, sweep
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.layer_model import LayerOutput, layer_input, states_of
from minitron_nas.progress import Progress, part_of, silent
from minitron_nas.text.tokens import PackedTokens


def score_importance(
    model: CausalLM,
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
    sent to it; for heads of Mamba mixers the L2 norm of what the head hands to the output projection, and for
    their channels the L2 norm over the heads. Layers get Block Importance, 1 - mean cos(layer input, layer output).

    Args:
        model: A causal LM on its device.
        architecture: Its shape.
        layout: Its family table; says where to measure.
        calibration: The text.
        settings: The two aggregations.
        batch_sequences: Sequences of one forward pass.
        progress: Told about tokens.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 2.2; KV groups after the
    independent KV-head contribution of Puzzle (arXiv 2411.19146); Mamba's heads within groups and channels shared by
    heads after Minitron-SSM (arXiv 2504.11409), which scores the input projection's outputs instead.
    """
    parts = (
        score_sums(
            model,
            architecture,
            layout,
            calibration.sequences(torch.tensor(shard)),
            settings,
            batch_sequences,
            part_of(progress, shard.start * calibration.input_ids.shape[1], calibration.num_tokens),
        )
        for shard in text_shards(calibration.num_sequences, batch_sequences)
    )
    return scores_of(added(parts), architecture, layout, settings)


def score_sums(
    model: CausalLM,
    architecture: Architecture,
    layout: Layout,
    text: PackedTokens,
    settings: ImportanceSettings,
    batch_sequences: int = BATCH_SEQUENCES,
    progress: Progress = silent,
) -> Sums:
    """Measure in one pass what scores are made of, over a part of their text.

    Args:
        model: A causal LM on its device.
        architecture: Its shape.
        layout: Its family table; says where to measure.
        text: The part.
        settings: How a sample's tokens are aggregated.
        batch_sequences: Sequences of one forward pass.
        progress: Told about tokens.
    """
    collector = _Collector(architecture, layout, settings)
    one_pass(model, text, partial(_hooks, layout, collector), batch_sequences, progress)
    return collector.sums


def sweep_sums(
    checkpoint: Checkpoint,
    text: PackedTokens,
    parts: Sequence[int],
    settings: ImportanceSettings,
    folder: Path,
    batch_sequences: int = BATCH_SEQUENCES,
    progress: Progress = silent,
) -> list[Sums]:
    """Measure the same with one layer in memory at a time, over several parts while it is there.

    Args:
        checkpoint: The model.
        text: All of the parts.
        parts: The sequences of each.
        settings: How a sample's tokens are aggregated.
        folder: Where hidden states go that memory is too small for; holds nothing afterwards.
        batch_sequences: Sequences of one forward pass.
        progress: Told about tokens, counted once for every layer.

    Raises:
        DiskSpaceError: If neither memory nor disk can hold the hidden states.
    """
    layout = checkpoint.layout
    collectors = [_Collector(checkpoint.architecture, layout, settings) for _ in parts]
    watched = [(part, partial(_hooks, layout, each)) for part, each in zip(parts, collectors, strict=True)]
    sweep(checkpoint, text, watched, folder, batch_sequences, progress)
    return [collector.sums for collector in collectors]


class _Collector:
    """Sums of one pass, a few numbers per unit.

    Attributes:
        sums: What was measured so far.
        batch_shape: (batch, seq_len) of what runs.
    """

    def __init__(self, architecture: Architecture, layout: Layout, settings: ImportanceSettings) -> None:
        self.sums: Sums = {}
        self.batch_shape: tuple[int, ...] = ()
        self._architecture, self._layout, self._settings = architecture, layout, settings

    def kind_of(self, layer: int) -> str:
        return self._architecture.kinds[layer]

    def add(self, place: str, activations: Tensor) -> None:
        """Add raw scores of shape (batch, seq_len, units), or with the first two run together."""
        shaped = activations.reshape(*self.batch_shape, -1)
        self._add_samples(place, over_sequence(shaped, self._settings.sequence_aggregation))

    def add_heads(self, layer: int, inputs: Tensor, projection: Tensor) -> None:
        source = self._architecture
        heads = inputs.reshape(*self.batch_shape, source.num_attention_heads, -1).float().norm(dim=-1)
        self.add(f"heads.{layer}", heads)
        width = inputs.shape[-1] // source.num_key_value_heads
        contributions = [
            (inputs[..., start : start + width] @ projection[:, start : start + width].T).float().norm(dim=-1)
            for start in range(0, inputs.shape[-1], width)
        ]
        self.add(f"kv_groups.{layer}", torch.stack(contributions, dim=-1))

    def add_mamba(self, layer: int, inputs: Tensor) -> None:
        by_head = inputs.reshape(*self.batch_shape, self._architecture.mamba_num_heads, -1).float()
        self.add(f"mamba_heads.{layer}", by_head.norm(dim=-1))
        self.add(f"mamba_channels.{layer}", by_head.norm(dim=-2))

    def add_experts(self, axis: Axis, layer: int, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Compute again, expert by expert, what the module computes.

        Args:
            axis: Of an expert's neurons.
            layer: The layer.
            module: Computes all experts of the layer.
            args: What it is called with.
        """
        num_tokens, num_experts = prod(self.batch_shape), self._architecture.num_experts
        added = args[0].new_zeros((num_tokens, num_experts), dtype=torch.float32)
        for expert in range(num_experts):
            tokens, inputs, weights = sent_to(module, expert, args)
            active = expert_neurons(module, expert, inputs)
            neurons = active.new_zeros((num_tokens, active.shape[-1]))
            neurons[tokens] = active
            self.add(f"{axis}.{layer}.{expert}", neurons)
            output = expert_outputs(module, expert, active) * weights
            added[tokens, expert] = output.float().norm(dim=-1)
        self.add(f"experts.{layer}", added)

    def add_layer(self, layer: int, inputs: Tensor, output: Tensor) -> None:
        cosine = cosine_similarity(inputs.float(), output.float(), dim=-1)
        self._add_samples(f"cosines.{layer}", cosine.mean(dim=1, keepdim=True))

    def leave_device(self) -> None:
        """Bring all sums to main memory, which has room for those of a whole model."""
        self.sums = {place: sums.cpu() for place, sums in self.sums.items()}

    def _add_samples(self, place: str, samples: Tensor) -> None:
        sums = sample_sums(samples)
        self.sums[place] = self.sums[place] + sums if place in self.sums else sums


@contextmanager
def _hooks(layout: Layout, collector: _Collector, section: Section) -> Iterator[None]:
    """Measure at the places that the family table names, for the duration of the block."""
    handles = []

    def before(name: str, layer: int, action: Callable[[nn.Module, tuple[Any, ...]], None]) -> None:
        handles.append(section.module(name, layer).register_forward_pre_hook(action))

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        collector.batch_shape = tuple(layer_input(args, kwargs).shape[:-1])

    def watch_neurons(axis: Axis, layer: int) -> None:
        down = layout.writer(axis)
        if not layout.has_axis(axis, collector.kind_of(layer)):
            return
        if down.per_expert:
            before(layout.module_of(down), layer, lambda module, args: collector.add_experts(axis, layer, module, args))
        else:
            before(layout.module_of(down), layer, lambda _, args: collector.add(f"{axis}.{layer}", args[0]))

    def measure(layer: int) -> None:
        kind = collector.kind_of(layer)
        for reader in layout.readers(kind):
            place = hidden_place(layout, reader, layer)
            before(layout.module_of(reader), layer, lambda _, args, place=place: collector.add(place, args[0]))  # type: ignore[misc]
        output = layout.writer(Axis.GROUP_HEADS)
        if output.in_kind(kind):
            before(
                layout.module_of(output),
                layer,
                lambda module, args: collector.add_heads(layer, args[0], _projection(module, layout)),
            )
        if layout.has_axis(Axis.MAMBA_GROUP_HEADS, kind):
            mixed = layout.writer(Axis.MAMBA_GROUP_HEADS)
            before(layout.module_of(mixed), layer, lambda _, args: collector.add_mamba(layer, args[0]))
        for axis in layout.neuron_axes:
            watch_neurons(axis, layer)

        def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: LayerOutput) -> None:
            collector.add_layer(layer, layer_input(args, kwargs), states_of(output))

        block = section.module(layout.layer_module, layer)
        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(block.register_forward_hook(leave, with_kwargs=True))

    try:
        for layer in section.layers:
            measure(layer)
        yield
        collector.leave_device()
    finally:
        for handle in handles:
            handle.remove()


def _projection(module: nn.Module, layout: Layout) -> Tensor:
    """The weight of a layer's projection, (outputs, inputs)."""
    weight = module.get_parameter("weight")
    return weight.T if layout.inputs_first(layout.writer(Axis.GROUP_HEADS)) else weight
