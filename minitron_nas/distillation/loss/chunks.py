"""The loss of a chunk of tokens and its gradients: one function, so that a compiler can fuse it.

As written, it passes over (num_rows, vocab_size) some twenty times, in float32; compiled, over the matrix
products alone, in their own number format, while a row is in the processor's cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, zeros_like
from torch.linalg import vecdot
from torch.nn.functional import log_softmax, pad, softmax

from minitron_nas.distillation.loss.gradients import distance_of, next_token
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets, TopKTargets
from minitron_nas.execution.compiler import compiled
from minitron_nas.execution.device import total_bytes

_CHUNK_TOKENS = 512
"""On a CPU, and at least."""

_DEVICE_FRACTION = 128
"""The products of a chunk take at most this part of a GPU's memory. It multiplies larger matrices faster: on an
H200 the loss takes 0.73 of the time with 2048 tokens at once, and with more of them hardly less."""

_COMPILED_FROM = 2**22
"""Logits of a chunk; with fewer, compiling takes longer than what it saves in a short training."""

_IMPOSSIBLE = -1e30
"""A logit whose probability is 0; a finite one, so that 0 times its logarithm is 0."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the loss is made of, token by token.

    Attributes:
        targets: What the teacher says, if the loss asks.
        token_weights: (num_tokens,), of each token's distance.
        labels: (num_tokens,), next tokens.
        label_weights: (num_tokens,), of each token's next-token loss, before `lm_loss_weight`.
    """

    targets: HiddenTargets | TopKTargets | None
    token_weights: Tensor
    labels: Tensor
    label_weights: Tensor

    def of(self, rows: slice) -> Self:
        """Return the terms of some tokens.

        Args:
            rows: Which of num_tokens.
        """
        targets = None if self.targets is None else self.targets.of(rows)
        return type(self)(targets, self.token_weights[rows], self.labels[rows], self.label_weights[rows])


def chunks(num_tokens: int, head: OutputHead) -> Iterator[slice]:
    """Yield the rows of each chunk.

    Args:
        num_tokens: Of the batch.
        head: What they are multiplied with.
    """
    size = _chunk_tokens(head)
    for start in range(0, num_tokens, size):
        yield slice(start, start + size)


def _chunk_tokens(head: OutputHead) -> int:
    """Return how many tokens are multiplied with both heads at once."""
    device = head.weight.device
    if device.type == "cpu":
        return _CHUNK_TOKENS
    fitting = total_bytes(device) // (_DEVICE_FRACTION * 2 * head.vocab_size * head.weight.element_size())
    return max(_CHUNK_TOKENS, 1 << (fitting.bit_length() - 1))


class Workspace:
    """Memory for the matrix products of one chunk, which all chunks of a batch use in turn."""

    def __init__(self, num_tokens: int, head: OutputHead, targets: HiddenTargets | TopKTargets | None) -> None:
        """Take it for a batch.

        Args:
            num_tokens: Of the batch.
            head: The student's output head.
            targets: What the teacher says over the batch.
        """
        num_rows = min(num_tokens, _chunk_tokens(head))
        self.student = head.weight.new_empty(num_rows, head.vocab_size)
        self.teacher = None
        if isinstance(targets, HiddenTargets):
            self.teacher = targets.head.weight.new_empty(num_rows, targets.head.vocab_size)
        self.weight = torch.empty_like(head.weight)


class ChunkLoss(NamedTuple):
    """The loss of a chunk, and its gradients.

    Attributes:
        total: A scalar, float32 or wider.
        distance: A scalar, the part of it that compares with the teacher.
        hidden: (num_rows, hidden_size), the gradient with respect to the final hidden states.
        weight: (vocab_size, hidden_size), with respect to the output head's weight; the next chunk overwrites it.
        bias: (vocab_size,), with respect to its bias, if it has one.
    """

    total: Tensor
    distance: Tensor
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


def chunk_loss(
    hidden: Tensor, head: OutputHead, terms: Terms, settings: DistillationSettings, workspace: Workspace
) -> ChunkLoss:
    """Compute the loss of a chunk, compiled where the chunk is worth it.

    Args:
        hidden: (num_rows, hidden_size), the student's final hidden states in the head's dtype.
        head: The student's output head, without gradient.
        terms: What the rows are compared with.
        settings: Which loss.
        workspace: Of the batch.
    """
    product = head.product(hidden, workspace.student)
    targets = terms.targets
    teacher = targets.head.product(targets.hidden, workspace.teacher) if isinstance(targets, HiddenTargets) else None
    compute = _fused_loss if is_worth_compiling(hidden, head) else _loss_of_products
    total, distance, bias = compute(product, teacher, head, terms, settings)
    return ChunkLoss(total, distance, product @ head.weight, torch.mm(product.T, hidden, out=workspace.weight), bias)


def is_worth_compiling(hidden: Tensor, head: OutputHead) -> bool:
    """Whether the logits of a chunk are so many that compiling pays within a short training.

    Args:
        hidden: (num_rows, hidden_size).
        head: Its output head.
    """
    return len(hidden) * head.vocab_size >= _COMPILED_FROM


def _loss_of_products(
    product: Tensor, teacher: Tensor | None, head: OutputHead, terms: Terms, settings: DistillationSettings
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return loss, distance in it and gradient of the bias; the gradient of the product takes its place.

    Args:
        product: (num_rows, vocab_size), the student's hidden states times its head's weight.
        teacher: (num_rows, teacher_vocab_size), the teacher's, if its hidden states are known.
        head: The student's output head.
        terms: What the rows are compared with.
        settings: Which loss.
    """
    logits = head.finish(product)
    total, distance, gradient = _loss_of_logits(logits, teacher, terms, settings)
    gradient = head.gradient_(gradient, logits)
    product.copy_(gradient)
    return total, distance, None if head.bias is None else gradient.sum(dim=0)


_fused_loss = compiled(_loss_of_products)


def _loss_of_logits(
    logits: Tensor, teacher_product: Tensor | None, terms: Terms, settings: DistillationSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, distance in it and gradient with respect to logits, (num_rows, vocab_size)."""
    if terms.targets is None:
        loss, gradient = next_token(log_softmax(logits, dim=-1), terms.labels, terms.label_weights)
        return loss, zeros_like(loss), gradient
    student, teacher, kept = _log_probs(logits, teacher_product, terms.targets, settings)
    lm_loss, lm_gradient = None, None
    if settings.lm_loss_weight:
        plain = student if settings.temperature == 1 and kept is None else log_softmax(logits, dim=-1)
        lm_loss, lm_gradient = next_token(plain, terms.labels, settings.lm_loss_weight * terms.label_weights)
    values, gradient = distance_of(settings)(student, teacher)
    gradient.mul_(terms.token_weights[:, None] / settings.temperature)
    if kept is not None:
        gradient = kept.spread(gradient)
    distance = vecdot(values, terms.token_weights)
    if lm_loss is None or lm_gradient is None:
        return distance, distance, gradient
    return distance + lm_loss, distance, gradient.add_(lm_gradient)


class _Kept(NamedTuple):
    """Which tokens a divergence tells apart, where all others are one.

    Attributes:
        indices: (num_rows, k), the tokens.
        others: (num_rows, vocab_size), logits in which these are impossible.
    """

    indices: Tensor
    others: Tensor

    @classmethod
    def of(cls, logits: Tensor, indices: Tensor) -> Self:
        """Keep tokens of logits, (num_rows, vocab_size)."""
        return cls(indices, logits.scatter(1, indices, _IMPOSSIBLE))

    def gather(self, logits: Tensor) -> Tensor:
        """Return (num_rows, k + 1) logits, the last of which all others have together."""
        return torch.cat([logits.gather(1, self.indices), self.others.logsumexp(dim=1, keepdim=True)], dim=1)

    def spread(self, gradient: Tensor) -> Tensor:
        """Return the gradient with respect to all logits from that with respect to the gathered ones."""
        whole = softmax(self.others, dim=-1).mul_(gradient[:, -1:])
        return whole.scatter_add_(1, self.indices, gradient[:, :-1])


def _log_probs(
    logits: Tensor,
    teacher_product: Tensor | None,
    targets: HiddenTargets | TopKTargets,
    settings: DistillationSettings,
) -> tuple[Tensor, Tensor, _Kept | None]:
    """Return log-probabilities of student and teacher at a temperature, and of which tokens: None for all."""
    kept, outside = None, None
    if isinstance(targets, TopKTargets):
        teacher = torch.cat([targets.log_probs, targets.rest[:, None].clamp(min=_IMPOSSIBLE)], dim=1).to(logits.dtype)
        outside = targets.indices >= logits.shape[1]  # padding that the student lacks
        inside = targets.indices.gather(1, outside.long().argmin(dim=1, keepdim=True))
        kept = _Kept.of(logits, torch.where(outside, inside.clamp(max=logits.shape[1] - 1), targets.indices))
    else:
        assert teacher_product is not None
        teacher = targets.head.finish(teacher_product)[:, : logits.shape[1]].to(logits.dtype)
        if settings.top_k is not None and settings.top_k < teacher.shape[1]:
            best = _Kept.of(teacher, teacher.topk(settings.top_k).indices)
            teacher, kept = best.gather(teacher), _Kept.of(logits, best.indices)
    student = logits if kept is None else kept.gather(logits)
    if settings.temperature != 1:
        student, teacher = student / settings.temperature, teacher / settings.temperature
    if outside is not None:
        nowhere = pad(outside, (0, 1))
        student, teacher = (side.masked_fill(nowhere, _IMPOSSIBLE) for side in (student, teacher))
    return log_softmax(student, dim=-1), log_softmax(teacher, dim=-1), kept
