"""The one door to Liger's fused kernel, which computes the distance to the teacher on a GPU.

It knows a matrix product, a temperature and the divergences, and no more: everything else that a head
or a loss may ask for is left to `minitron_nas.distillation.loss.losses`, and so is every other device.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets


def has_kernel(device: torch.device) -> bool:
    """Whether Liger is installed and a device can run it; the extra `gpu` brings it.

    Args:
        device: Where the loss is computed.
    """
    return device.type == "cuda" and find_spec("liger_kernel") is not None


def is_exact(head: OutputHead, targets: HiddenTargets, settings: DistillationSettings) -> bool:
    """Whether Liger's kernel computes what the settings ask for, of these heads.

    Args:
        head: The student's output head, cut to the vocabulary that both have.
        targets: What the teacher says.
        settings: Which loss, and how it is weighed.
    """
    return (
        _teacher_weight(settings) is not None
        and settings.top_k is None
        and not settings.lm_loss_weight
        and _is_plain(head)
        and _is_plain(targets.head)
        and head.weight.dtype != torch.float64
    )


def fused_distance(
    hidden: Tensor, head: OutputHead, targets: HiddenTargets, settings: DistillationSettings, dtype: torch.dtype
) -> Tensor:
    """Mean distance to the teacher over all tokens, a scalar in float32.

    Liger's generalised Jensen-Shannon weighs the teacher with beta as ours does, and takes 0 and 1 for
    forward and reverse KL, undivided.

    Args:
        hidden: (num_tokens, hidden_size), the student's final hidden states.
        head: The student's output head.
        targets: What the teacher says.
        settings: Which loss.
        dtype: Of the matrix products.
    """
    from liger_kernel.transformers import LigerFusedLinearJSD  # deferred: optional, and it compiles

    teacher = targets.head.first(head.vocab_size).weight
    kernel = LigerFusedLinearJSD(
        jsd_beta=_teacher_weight(settings), temperature=settings.temperature, accum_dtype=torch.float32
    )
    sides = (hidden, head.weight, targets.hidden, teacher)
    distance: Tensor = kernel(*(side.to(dtype) for side in sides), None)
    return distance


def _teacher_weight(settings: DistillationSettings) -> float | None:
    """Liger's name of a loss; None for those that it does not know."""
    known = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": settings.jsd_beta}
    return known.get(settings.loss)


def _is_plain(head: OutputHead) -> bool:
    return head.scaling == 1 and head.softcap is None and head.bias is None
