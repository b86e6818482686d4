"""The distillation loss, from final hidden states and output heads straight to gradients."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.nn.functional import log_softmax, nll_loss

from minitron_nas.distillation.loss.chunks import Terms, Workspace, chunk_loss, chunks, is_worth_compiling
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets, TopKTargets
from minitron_nas.execution.compiler import compiled
from minitron_nas.text.tokens import IGNORE_LABEL


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) of every token, in nats.

    sum_v p_t(v) (log p_t(v) - log p_s(v)), at temperature 1.

    Args:
        student_logits: (num_tokens, vocab_size).
        teacher_logits: (num_tokens, vocab_size).

    Returns:
        (num_tokens,), float32 or wider.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 3, L_logits with KLD.
    """
    teacher = log_softmax(_widen(teacher_logits), dim=-1)
    student = log_softmax(_widen(student_logits), dim=-1)
    return (teacher.exp() * (teacher - student)).sum(dim=-1)


@dataclass(frozen=True, slots=True)
class Losses:
    """Means over tokens, in nats.

    Attributes:
        kl_nats: KL(teacher || student) over all tokens that count; NaN without a teacher.
        loss_nats: Next-token loss over the tokens whose next token is in the same document.
        num_tokens: Tokens that the KL is averaged over.
        sequence_kl_nats: The KL of each sequence, summed over its tokens, where sequences were told apart; models that
            read the same sequences are compared by these.
        sequence_loss_nats: The next-token loss of each sequence, summed likewise.
    """

    kl_nats: float
    loss_nats: float
    num_tokens: int
    sequence_kl_nats: tuple[float, ...] = ()
    sequence_loss_nats: tuple[float, ...] = ()


class LossSums:
    """Sums that `Losses` are the means of; accumulates over batches, a chunk of tokens at a time."""

    def __init__(self) -> None:
        """Start from nothing."""
        self._kl = 0.0
        self._loss = 0.0
        self._tokens = 0
        self._labels = 0

    @torch.no_grad()
    def add(
        self,
        hidden: Tensor,
        head: OutputHead,
        labels: Tensor,
        targets: HiddenTargets | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Add a batch, and return the KL and the next-token loss of each of its tokens that counts, in nats, float64.

        Args:
            hidden: (num_tokens, hidden_size), the model's final hidden states.
            head: Its output head.
            labels: (num_tokens,), next tokens or `IGNORE_LABEL`.
            targets: What the teacher says; the KL is taken over the vocabulary that both heads have.
            mask: (num_tokens,), bool; False leaves a token out. All tokens count by default.
        """
        if mask is not None and not mask.all():
            hidden, labels = hidden[mask], labels[mask]
            targets = None if targets is None else HiddenTargets(targets.hidden[mask], targets.head)
        kls, losses = ([torch.zeros(0, dtype=torch.float64)] for _ in range(2))
        for rows in chunks(len(hidden), head):
            part = None if targets is None else targets.of(rows)
            compute = _fused_losses if is_worth_compiling(hidden[rows], head) else _chunk_losses
            kl, loss = compute(hidden[rows], head, labels[rows], part)
            kls.append(kl.double().cpu())
            losses.append(loss.double().cpu())
            self._kl += kls[-1].sum().item()
            self._loss += losses[-1].sum().item()
        self._tokens += len(hidden) if targets is not None else 0
        self._labels += int((labels != IGNORE_LABEL).sum())
        return torch.cat(kls), torch.cat(losses)

    def means(self) -> Losses:
        """Return the means so far."""
        return Losses(
            self._kl / self._tokens if self._tokens else float("nan"),
            self._loss / self._labels if self._labels else float("nan"),
            max(self._tokens, self._labels),
        )


def _chunk_losses(
    hidden: Tensor, head: OutputHead, labels: Tensor, targets: HiddenTargets | None
) -> tuple[Tensor, Tensor]:
    """Return KL(teacher || student) and the next-token loss of each token of a chunk; 0 where there is no next."""
    logits = head.logits(hidden)
    kl = logits.new_zeros(len(hidden))
    if targets is not None:
        common = _common_vocab_size(head, targets)
        kl = forward_kl(logits[:, :common], targets.logits()[:, :common])
    loss = nll_loss(log_softmax(logits, dim=-1), labels, ignore_index=IGNORE_LABEL, reduction="none")
    return kl, loss


_fused_losses = compiled(_chunk_losses)


class DistillationLoss(NamedTuple):
    """What is minimised.

    Attributes:
        total: A scalar, float32 or wider; the loss.
        distance: A scalar, the part of it that compares with the teacher; without gradient.
    """

    total: Tensor
    distance: Tensor


class Counted(NamedTuple):
    """What of a batch counts in the loss, and over how much of it the loss is a mean.

    A batch in equal parts has the mean of the whole if each is told the whole's numbers over the number of parts, and
    the parts' losses are averaged.

    Attributes:
        next_tokens: (num_tokens,) or (batch, seq_len), as the mask; `IGNORE_LABEL` where there is none.
        num_labels: What the sum of next-token losses is divided by; the labels of this batch by default.
        mask: Bool; False leaves a token out. All tokens count by default.
        num_tokens: What the sum of distances is divided by; the tokens of this batch that count by default.
    """

    next_tokens: Tensor
    num_labels: float | Tensor | None = None
    mask: Tensor | None = None
    num_tokens: float | Tensor | None = None

    def flatten(self) -> Self:
        """Return the same of (num_tokens,)."""
        mask = None if self.mask is None else self.mask.flatten()
        return self._replace(next_tokens=self.next_tokens.flatten(), mask=mask)


def distillation_loss(
    hidden: Tensor,
    head: OutputHead,
    counted: Counted,
    targets: HiddenTargets | TopKTargets | None,
    settings: DistillationSettings,
    dtype: torch.dtype | None = None,
) -> DistillationLoss:
    """Mean distance to the teacher plus `settings.lm_loss_weight` times the mean next-token loss, or that alone.

    The vocabulary's logits exist for a chunk of tokens only, and their gradient is taken in the
    forward pass, so memory does not grow with num_tokens x vocab_size. Where the teacher's vocabulary
    and the student's differ in size, the larger one's last entries are padding and are left out.

    Args:
        hidden: (num_tokens, hidden_size), the student's final hidden states.
        head: The student's output head; gradients reach its weight, tied or not, and its bias.
        counted: (num_tokens,), what of them counts, and their next tokens.
        targets: What the teacher says; only the next-token loss alone does without.
        settings: Which loss, and how it is weighed.
        dtype: Of the matrix products; the head's by default.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 3: L = L_CLM + L_logits, where
    L_logits alone proved best.
    """
    labels, num_labels, mask, num_tokens = counted
    wide = torch.promote_types(head.weight.dtype, torch.float32)
    seen = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
    labelled = seen & (labels != IGNORE_LABEL)
    if targets is not None:
        head = head.first(_common_vocab_size(head, targets))
    terms = Terms(
        targets if settings.asks_teacher else None,
        seen.to(wide) / (seen.sum().clamp(min=1) if num_tokens is None else num_tokens),
        labels.masked_fill(~labelled, 0),
        labelled.to(wide) / (labelled.sum().clamp(min=1) if num_labels is None else num_labels),
    )
    total, distance = _DistillationLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, head.detached(dtype), terms, settings
    )
    return DistillationLoss(total, distance)


class _DistillationLoss(torch.autograd.Function):
    """`distillation_loss` with its gradient computed chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: OutputHead,
        terms: Terms,
        settings: DistillationSettings,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(weight.dtype, torch.float32)
        total, distance = torch.zeros((2,), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(hidden, dtype=head.weight.dtype)
        grad_weight = torch.zeros_like(weight, dtype=wide)
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None else None
        workspace = Workspace(len(hidden), head, terms.targets)
        for rows in chunks(len(hidden), head):
            chunk = chunk_loss(hidden[rows].to(head.weight.dtype), head, terms.of(rows), settings, workspace)
            total, distance = total + chunk.total, distance + chunk.distance
            grad_hidden[rows] = chunk.hidden
            grad_weight += chunk.weight
            if grad_bias is not None and chunk.bias is not None:
                grad_bias += chunk.bias
        kept = [grad_bias.to(bias.dtype)] if grad_bias is not None and bias is not None else []
        ctx.save_for_backward(grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype), *kept)
        ctx.mark_non_differentiable(distance)
        return total, distance

    @staticmethod
    def backward(ctx: BackwardCFunction, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        upstream = grad_outputs[0]
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        grad_hidden, grad_weight, *grad_bias = saved
        return (
            grad_hidden * upstream.to(grad_hidden.dtype),
            grad_weight * upstream,
            grad_bias[0] * upstream if grad_bias else None,
            None,
            None,
            None,
        )


def _common_vocab_size(head: OutputHead, targets: HiddenTargets | TopKTargets) -> int:
    return min(head.vocab_size, targets.vocab_size)


def _widen(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
