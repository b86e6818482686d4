"""The criteria of depth pruning: what a model loses with some of its layers.

All are read the same way: the lower, the less is lost.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from minitron_nas.architecture.layout import Layout
from minitron_nas.distillation.loss.chunks import chunks
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets
from minitron_nas.distillation.signals.teacher import OnlineTeacher, TeacherSignal
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.evaluation.tasks import Task
from minitron_nas.importance.layer_removal import FirstLayers, run_text, without_layers
from minitron_nas.importance.settings import DepthSettings
from minitron_nas.importance.sums import BATCH_SEQUENCES
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.layer_model import LayerOutput, decoder_layers, layer_input, states_of
from minitron_nas.text.tokens import PackedTokens

Criterion: TypeAlias = Callable[[frozenset[int], Sequence[range]], Iterator[float]]
"""From the layers that are out already, and runs of layers one of which could go next, to a score of each run."""


@torch.no_grad()
def block_importance(model: CausalLM, layout: Layout, tokens: PackedTokens, runs: Sequence[range]) -> list[float]:
    """1 - E[cos(x_first, x_last+1)] of runs of layers, all from one pass.

    x_first is what the first layer of a run reads and x_last+1 what its last layer puts out; the mean
    is over tokens. Of a run of one layer it is the layer's Block Importance.

    Args:
        model: A causal LM on its device.
        layout: Its family table.
        tokens: The text.
        runs: Contiguous layers.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 2.2.
    """
    cosines = torch.zeros(len(runs), dtype=torch.float64)
    # One sequence at a time: what passes between all layers is kept.
    for _, batch in tokens.batches(1):
        with _between_layers(model, layout) as states:
            run_text(model, batch)
        for number, run in enumerate(runs):
            cosine = cosine_similarity(states[run.start].float(), states[run.stop].float(), dim=-1)
            cosines[number] += cosine.double().mean().item()
    return [1 - total / tokens.num_sequences for total in cosines.tolist()]


@contextmanager
def _between_layers(model: CausalLM, layout: Layout) -> Iterator[list[Tensor]]:
    """Collect what the first layer reads and what every layer puts out."""
    states: list[Tensor] = []

    def put_out(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: LayerOutput) -> None:
        if not states:
            states.append(layer_input(args, kwargs))
        states.append(states_of(output))

    layers = range(model.config.num_hidden_layers)
    modules = decoder_layers(model, layout, layers)
    handles = [module.register_forward_hook(put_out, with_kwargs=True) for module in modules]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class WholeModel:
    """A teacher signal: what the model says while all its layers are there, kept in memory.

    Attributes:
        head: The model's output head.
        states: (num_sequences, seq_len, hidden_size), final hidden states on the model's device.
    """

    head: OutputHead
    states: Tensor

    @classmethod
    def of(cls, model: CausalLM, tokens: PackedTokens) -> Self:
        """Run the model once over all tokens.

        Args:
            model: A causal LM on its device.
            tokens: The text.
        """
        teacher = OnlineTeacher(model)
        batches = tokens.batches(BATCH_SEQUENCES)
        states = torch.cat([teacher.targets(indices, batch).hidden for indices, batch in batches])
        return cls(teacher.head, states.view(*tokens.input_ids.shape, -1))

    def targets(self, indices: Tensor, tokens: PackedTokens) -> HiddenTargets:
        """Return what the model said over some sequences.

        Args:
            indices: (batch,), positions of the sequences in the text.
            tokens: The sequences themselves; not looked at.
        """
        return HiddenTargets(self.states[indices.to(self.states.device)].flatten(0, 1), self.head)


def next_token_loss(model: CausalLM, tokens: PackedTokens) -> float:
    """Mean next-token loss -log p(x_i+1 | x_1..x_i) of a model without some layers, in nats.

    Args:
        model: A causal LM without some layers.
        tokens: The text.

    Source: Sreenivas et al. 2024 (arXiv 2408.11796), depth pruning by validation loss.
    """
    return validate(model, tokens, None, BATCH_SEQUENCES).loss_nats


def kl_to_whole(model: CausalLM, tokens: PackedTokens, whole: TeacherSignal) -> float:
    """Mean KL(whole || model without some layers) per token, in nats.

    Args:
        model: A causal LM without some layers.
        tokens: The text.
        whole: What the whole model says of it.

    Source: the score of untrained candidates, Muralidharan et al. 2024 (arXiv 2407.14679), table 1.
    """
    return validate(model, tokens, whole, BATCH_SEQUENCES).kl_nats


@torch.no_grad()
def logit_error(model: CausalLM, tokens: PackedTokens, whole: WholeModel) -> float:
    """Relative square error of the logits M, sum (M_full - M_without)^2 / sum M_full^2.

    Both sums are over tokens and vocabulary.

    Args:
        model: A causal LM without some layers.
        tokens: The text.
        whole: The whole model over the same text.

    Source: NVIDIA 2025, Nemotron Elastic (arXiv 2511.16664), depth ranking by normalised MSE.
    """
    error = energy = 0.0
    for indices, batch in tokens.batches(BATCH_SEQUENCES):
        states = run_text(model, batch).flatten(0, 1)
        targets = whole.targets(indices, batch)
        for rows in chunks(len(states), whole.head):
            full = targets.of(rows).logits()
            error += (whole.head.logits(states[rows]) - full).square().sum(dtype=torch.float64).item()
            energy += full.square().sum(dtype=torch.float64).item()
    return error / energy


def task_settings(settings: DepthSettings) -> EvaluationSettings:
    """Return how the task of criterion `task` is run."""
    return EvaluationSettings(tasks=(settings.task or "",), include_path=settings.include_path, limit=settings.limit)


def task_error(model: CausalLM, tokenizer: Path, settings: DepthSettings, seed: int) -> Callable[[], float]:
    """Return a function that gives 1 - accuracy in a multiple-choice task, as the model is when it is called.

    Args:
        model: A causal LM.
        tokenizer: The folder of its tokenizer.
        settings: Name the task.
        seed: Of the examples in prompts.

    Raises:
        PlanError: If lm-eval does not know the task, or, when called, if the task has no accuracy.

    Source: Sreenivas et al. 2024 (arXiv 2408.11796), depth pruning by Winogrande accuracy.
    """
    from minitron_nas.evaluation.lm_eval import Benchmarks, accuracy  # deferred: importing lm_eval takes seconds

    task = Task.parse(settings.task or "").name
    benchmarks = Benchmarks(task_settings(settings), "importance.depth.task")
    return lambda: 1 - accuracy(benchmarks.run(model, tokenizer, seed).rows, task, "importance.depth.task")


def make_criterion(
    model: CausalLM, layout: Layout, settings: DepthSettings, tokens: PackedTokens | None, tokenizer: Path, seed: int
) -> Criterion:
    """Return the criterion that the settings name, for one model.

    A score that is not finite counts as infinite: the model does not work without those layers.

    Args:
        model: A causal LM on its device.
        layout: Its family table.
        settings: Name the criterion.
        tokens: The text that layers are measured on; unused by criterion `task`.
        tokenizer: The folder of the model's tokenizer; for criterion `task`.
        seed: Of the examples in the task's prompts.

    Raises:
        PlanError: If lm-eval does not know the task.
    """
    measure: Callable[[], float]
    without: Callable[[frozenset[int], range], AbstractContextManager[None]]
    if settings.criterion == "task":
        measure = task_error(model, tokenizer, settings, seed)
        without = lambda removed, run: without_layers(model, layout, removed.union(run))  # noqa: E731
    else:
        assert tokens is not None
        text = tokens
        if settings.criterion == "block_importance":
            return lambda removed, runs: iter(_block_importance_without(model, layout, text, removed, runs))
        if settings.criterion == "loss":
            measure = lambda: next_token_loss(model, text)  # noqa: E731
        else:
            whole, function = WholeModel.of(model, text), kl_to_whole if settings.criterion == "kl" else logit_error
            measure = lambda: function(model, text, whole)  # noqa: E731
        without = FirstLayers(model, layout, text).without

    def criterion(removed: frozenset[int], runs: Sequence[range]) -> Iterator[float]:
        for run in runs:
            with without(removed, run):
                score = measure()
            yield score if isfinite(score) else inf

    return criterion


def _block_importance_without(
    model: CausalLM, layout: Layout, tokens: PackedTokens, removed: frozenset[int], runs: Sequence[range]
) -> list[float]:
    with without_layers(model, layout, removed):
        scores = block_importance(model, layout, tokens, runs)
    return [score if isfinite(score) else inf for score in scores]
