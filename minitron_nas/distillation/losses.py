"""The distillation loss, from final hidden states and output heads straight to gradients."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss

from minitron_nas.distillation.head import OutputHead
from minitron_nas.distillation.targets import HiddenTargets, Targets, TopKTargets

IGNORE_LABEL = -100
"""The label of a token that has no next token in its document."""

_CHUNK_TOKENS = 256


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
        kl_nats: KL(teacher || student) over all tokens; NaN without a teacher.
        loss_nats: Next-token loss over the tokens whose next token is in the same document.
        num_tokens: Tokens that the KL is averaged over.
    """

    kl_nats: float
    loss_nats: float
    num_tokens: int


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
        targets: Targets | None = None,
    ) -> None:
        """Add a batch.

        Args:
            hidden: (num_tokens, hidden_size), the model's final hidden states.
            head: Its output head.
            labels: (num_tokens,), next tokens or `IGNORE_LABEL`.
            targets: What the teacher says over the same tokens.
        """
        for start in range(0, len(hidden), _CHUNK_TOKENS):
            rows = slice(start, start + _CHUNK_TOKENS)
            logits = head.logits(hidden[rows])
            if targets is not None:
                self._kl += forward_kl(logits, targets.logits(rows)).double().sum().item()
            log_probs = log_softmax(logits, dim=-1)
            self._loss += nll_loss(log_probs, labels[rows], ignore_index=IGNORE_LABEL, reduction="sum").item()
        self._tokens += len(hidden) if targets is not None else 0
        self._labels += int((labels != IGNORE_LABEL).sum())

    def means(self) -> Losses:
        """Return the means so far."""
        return Losses(
            self._kl / self._tokens if self._tokens else float("nan"),
            self._loss / self._labels if self._labels else float("nan"),
            max(self._tokens, self._labels),
        )


def distillation_loss(
    hidden: Tensor,
    head: OutputHead,
    labels: Tensor,
    targets: HiddenTargets | TopKTargets,
    lm_loss_weight: float = 0.0,
) -> Tensor:
    """Mean forward KL plus `lm_loss_weight` times the mean next-token loss.

    The vocabulary's logits exist for a chunk of tokens only, and their gradient is taken in the
    forward pass, so memory does not grow with num_tokens x vocab_size.

    Args:
        hidden: (num_tokens, hidden_size), the student's final hidden states.
        head: The student's output head; gradients reach its weight, tied or not.
        labels: (num_tokens,), next tokens or `IGNORE_LABEL`.
        targets: What the teacher says. The products with both heads are taken in the dtype of the
            teacher's. Of its K most probable tokens, both sides are renormalised inside the K.
        lm_loss_weight: 0 leaves the next-token loss out.

    Returns:
        A scalar, float32 or wider.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 3: L = L_CLM + L_logits, where
    L_logits alone proved best.
    """
    loss: Tensor = _DistillationLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head, labels, targets, lm_loss_weight
    )
    return loss


class _DistillationLoss(torch.autograd.Function):
    """`distillation_loss` with its gradient computed chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        head: OutputHead,
        labels: Tensor,
        targets: HiddenTargets | TopKTargets,
        lm_loss_weight: float,
    ) -> Tensor:
        matmul_dtype = targets.head.weight.dtype if isinstance(targets, HiddenTargets) else hidden.dtype
        student_head = head.detached(matmul_dtype)
        wide = torch.promote_types(weight.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(hidden, dtype=matmul_dtype)
        grad_weight = torch.zeros_like(weight, dtype=wide)
        num_labels = (labels != IGNORE_LABEL).sum().clamp(min=1).to(wide)
        for start in range(0, len(hidden), _CHUNK_TOKENS):
            rows = slice(start, start + _CHUNK_TOKENS)
            inputs = hidden[rows].to(matmul_dtype)
            logits = student_head.logits(inputs)
            student = log_softmax(logits, dim=-1)
            student_probs = student.exp()
            if isinstance(targets, TopKTargets):
                indices = targets.indices[rows]
                own = log_softmax(student.gather(-1, indices), dim=-1)
                teacher = log_softmax(targets.log_probs[rows].to(wide), dim=-1)
                grad = torch.zeros_like(student).scatter_(-1, indices, own.exp() - teacher.exp())
            else:
                own, teacher = student, log_softmax(targets.logits(rows), dim=-1)
                grad = student_probs - teacher.exp()
            total += (teacher.exp() * (teacher - own)).sum() / len(hidden)
            grad.div_(len(hidden))
            if lm_loss_weight:
                chunk = labels[rows]
                seen = chunk != IGNORE_LABEL
                scale = lm_loss_weight / num_labels
                total += nll_loss(student, chunk, ignore_index=IGNORE_LABEL, reduction="sum") * scale
                student_probs[seen, chunk[seen]] -= 1
                grad += student_probs * (seen[:, None] * scale)
            narrow = student_head.gradient_(grad, logits).to(matmul_dtype)
            grad_hidden[rows] = narrow @ student_head.weight
            grad_weight += narrow.T @ inputs
        ctx.save_for_backward(grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grad_outputs
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * upstream.to(grad_hidden.dtype), grad_weight * upstream, None, None, None, None


def _widen(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
