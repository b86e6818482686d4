"""Distances between the teacher's distribution and the student's, each with its gradient.

A distance compares p = softmax(teacher_logits / temperature) with q = softmax(student_logits /
temperature) for every token, as L_logits = (1/l) sum_k Loss(p_k, q_k) of Muralidharan et al. 2024
(arXiv 2407.14679), section 3, does with every Loss it tries. There is no factor temperature^2: the
paper's formula has none, so that a loss is what its name says, in nats where it is a divergence. (Hinton
et al. 2015, arXiv 1503.02531, multiply by it to keep the gradient's size beside a next-token loss; with
another temperature than 1, `lm_loss_weight` takes that part.)

Functions take log p and log q, (num_tokens, vocab_size), and use both as their working memory. They
return values, (num_tokens,), and gradients with respect to student_logits / temperature,
(num_tokens, vocab_size).
"""

from collections.abc import Callable
from functools import partial
from math import log, log1p

import torch
from torch import Tensor
from torch.linalg import vecdot

from minitron_nas.distillation.settings import DistillationSettings

Distance = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Called with log q of the student and log p of the teacher."""


def distance_of(settings: DistillationSettings) -> Distance:
    """Return the distance that settings name.

    Args:
        settings: Which loss.

    Raises:
        KeyError: If they ask for the next-token loss alone.
    """
    known: dict[str, Distance] = {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jsd": partial(jensen_shannon, beta=settings.jsd_beta),
        "mse": squared_error,
        "cosine": cosine,
    }
    return known[settings.loss]


def forward_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum_v p_v (log p_v - log q_v); its gradient is q - p.

    Args:
        student: (num_tokens, vocab_size), log q.
        teacher: (num_tokens, vocab_size), log p.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 3; the best of those it tries.
    """
    target = teacher.exp()
    values = teacher.sub_(student).mul_(target).sum(dim=-1)
    return values, student.exp_().sub_(target)


def reverse_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p) = sum_v q_v (log q_v - log p_v).

    Args:
        student: (num_tokens, vocab_size), log q.
        teacher: (num_tokens, vocab_size), log p.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 3; Gu et al. 2024 (arXiv 2306.08543).
    """
    probs = student.exp()
    ratio = student.sub_(teacher)
    values = vecdot(probs, ratio)
    return values, ratio.sub_(values[:, None]).mul_(probs)


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Generalised Jensen-Shannon: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

    Divided by beta it becomes KL(p || q) for beta towards 0; divided by 1 - beta, KL(q || p) towards 1.

    Args:
        student: (num_tokens, vocab_size), log q.
        teacher: (num_tokens, vocab_size), log p.
        beta: Between 0 and 1.

    Source: Agarwal et al. 2024 (arXiv 2306.13649), equation 1.
    """
    mixture = torch.logaddexp(teacher + log(beta), student + log1p(-beta))
    target, probs = teacher.exp(), student.exp()
    to_teacher = vecdot(target, teacher.sub_(mixture))
    ratio = student.sub_(mixture)
    to_student = vecdot(probs, ratio)
    gradient = ratio.sub_(to_student[:, None]).mul_(probs).mul_(1 - beta)
    return beta * to_teacher + (1 - beta) * to_student, gradient


def squared_error(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """sum_v (p_v - q_v)^2; a sum, because a mean over the vocabulary would leave next to nothing.

    Args:
        student: (num_tokens, vocab_size), log q.
        teacher: (num_tokens, vocab_size), log p.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 3, with MSE.
    """
    probs, error = student.exp_(), teacher.exp_().neg_()
    error.add_(probs)
    values = vecdot(error, error)
    return values, error.sub_(vecdot(probs, error)[:, None]).mul_(probs).mul_(2)


def cosine(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """1 - p.q / (|p| |q|).

    Args:
        student: (num_tokens, vocab_size), log q.
        teacher: (num_tokens, vocab_size), log p.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 3, with cosine similarity.
    """
    probs, target = student.exp_(), teacher.exp_()
    squares = vecdot(probs, probs)
    norms = (squares * vecdot(target, target)).sqrt_()
    similarity = vecdot(probs, target) / norms
    # The gradient with respect to q is orthogonal to q, so the softmax only multiplies it by q.
    gradient = target.div_(-norms[:, None]).addcmul_(probs, (similarity / squares)[:, None]).mul_(probs)
    return 1 - similarity, gradient


def next_token(log_probs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """-log q_label of each token with its weight: the LM loss; its gradient is q - onehot(label).

    Args:
        log_probs: (num_tokens, vocab_size), log q at temperature 1; it stays as it is.
        labels: (num_tokens,), next tokens; any token where the weight is 0.
        weights: (num_tokens,).

    Returns:
        The weighted sum, a scalar, and its gradient with respect to student_logits.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 3, L_CLM.
    """
    chosen = labels[:, None]
    value = -vecdot(log_probs.gather(1, chosen)[:, 0], weights)
    gradient = log_probs.exp()
    gradient.scatter_add_(1, chosen, gradient.new_full(chosen.shape, -1.0))
    return value, gradient.mul_(weights[:, None])
