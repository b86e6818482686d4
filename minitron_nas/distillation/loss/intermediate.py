"""Matching hidden states inside the models, beside their logits."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss
from transformers import PreTrainedConfig

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.teacher import OnlineTeacher, TeacherSignal
from minitron_nas.errors import PlanError

_AUTO_DEPTH_FRACTION = 0.5
_SMALLEST_LOSS = 1e-8


class IntermediateLoss(nn.Module):
    """L_is = sum_k Loss(h_t^k, W h_s^k), each a mean over tokens, with one learned W for all k.

    k runs over the embeddings and the chosen pairs of layers; states are taken after the norm that
    follows (see `minitron_nas.distillation.loss.inner_states`). Loss is 1 - cos or the mean square over
    channels. Where student and teacher are equally wide, W is the identity and is not learned.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 3, L_is; appendix A.4 and A.6 for
    cosine, the third-last layers and the embeddings.
    """

    def __init__(
        self, student: PreTrainedConfig, teacher: PreTrainedConfig, settings: DistillationSettings, seed: int
    ) -> None:
        """Choose the places and draw W.

        Args:
            student: The config of the student.
            teacher: The config of the teacher.
            settings: Which layers and which loss.
            seed: Of W.

        Raises:
            PlanError: If a layer does not exist.
        """
        super().__init__()
        pairs = [
            (_place(layers[0], teacher, "teacher"), _place(layers[1], student, "student"))
            for layers in settings.intermediate_layers
        ]
        self.pairs: tuple[tuple[int, int], ...] = ((0, 0), *pairs)
        self.lift: nn.Linear | None = None
        if student.hidden_size != teacher.hidden_size:
            self.lift = nn.Linear(student.hidden_size, teacher.hidden_size, bias=False)
            generator = torch.Generator().manual_seed(seed)
            nn.init.normal_(self.lift.weight, std=student.hidden_size**-0.5, generator=generator)
        self._cosine = settings.intermediate_loss == "cosine"

    def forward(self, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor]) -> Tensor:
        """Return L_is, a float32 scalar.

        Args:
            student: By place, (batch, seq_len, hidden_size).
            teacher: By place, (batch, seq_len, teacher_hidden_size), on any device: layers of a teacher that is spread
                have several.
        """
        return torch.stack([self._distance(student[own], teacher[place]) for place, own in self.pairs]).sum()

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        lifted = student if self.lift is None else self.lift(student.to(self.lift.weight.dtype))
        wanted = teacher.to(lifted.device).float()
        if self._cosine:
            return 1 - cosine_similarity(wanted, lifted.float(), dim=-1).mean()
        return mse_loss(lifted.float(), wanted)


def intermediate_loss(
    student: PreTrainedConfig, signal: TeacherSignal | None, settings: DistillationSettings, seed: int
) -> IntermediateLoss | None:
    """Return the loss on hidden states if settings ask for it, for this student.

    `auto` asks for it where the student has at most half of the teacher's layers: the paper saw it help
    from 32 layers to 16, and not where depth is kept.

    Args:
        student: The config of the student.
        signal: The teacher.
        settings: Whether, and which layers.
        seed: Of the linear map.

    Raises:
        PlanError: If the teacher is not there to give its states, or a layer does not exist.
    """
    if settings.intermediate == "none":
        return None
    if not isinstance(signal, OnlineTeacher):
        raise PlanError(
            f"distillation.intermediate={settings.intermediate} needs hidden states inside the teacher, and a cache "
            "holds only what it says in the end; set distillation.teacher_signal=online"
        )
    teacher = signal.model.config
    deep = student.num_hidden_layers > _AUTO_DEPTH_FRACTION * teacher.num_hidden_layers
    return None if settings.intermediate == "auto" and deep else IntermediateLoss(student, teacher, settings, seed)


def weighed(states_loss: Tensor, distance: Tensor) -> Tensor:
    """Return alpha L_is with alpha = L_logits / L_is, a constant to the gradient, as large as the distance on logits.

    Args:
        states_loss: L_is.
        distance: L_logits, of the same tokens.

    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 3: better than a constant alpha.
    """
    alpha = (distance / states_loss.clamp(min=_SMALLEST_LOSS)).detach()
    return alpha * states_loss


def _place(layer: int, config: PreTrainedConfig, role: str) -> int:
    """Return the place of a layer's output."""
    count = config.num_hidden_layers
    if not -count <= layer < count:
        raise PlanError(
            f"distillation.intermediate_layers: the {role} has no layer {layer}; it has {count} layers, so choose "
            f"from {-count} to {count - 1}"
        )
    return int(layer % count) + 1
