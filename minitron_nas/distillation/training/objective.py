"""A student and its loss as one module."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from minitron_nas.distillation.loss.inner_states import InnerStates
from minitron_nas.distillation.loss.intermediate import IntermediateLoss, weighed
from minitron_nas.distillation.loss.losses import Counted, distillation_loss
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets, TopKTargets
from minitron_nas.distillation.signals.teacher import final_hidden
from minitron_nas.execution.device import compute_dtype
from minitron_nas.models.causal_lm import CausalLM


class Objective(nn.Module):
    """Computes the distillation loss inside one forward pass.

    DDP averages the gradients of what a forward pass has used, and ZeRO-3 gathers parameters for the
    forward and the backward pass of the module that reads them. The loss reads the output head beside
    the student's own forward pass, and the map of hidden states is trained with the student; here all of
    it is one module, so that every engine sees it.
    """

    def __init__(
        self, student: CausalLM, settings: DistillationSettings, intermediate: IntermediateLoss | None
    ) -> None:
        """Take a causal LM, which stays usable on its own.

        Args:
            student: The causal LM.
            settings: Which loss.
            intermediate: What compares hidden states inside the models, if anything does.
        """
        super().__init__()
        self.student = student  # named by `STUDENT`
        self.intermediate = intermediate
        self.config = student.config  # engines look for the sizes of buffers here
        self._settings = settings
        pairs = intermediate.pairs if intermediate is not None else ()
        self._states = InnerStates(student, [own for _, own in pairs])

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        counted: Counted,
        targets: HiddenTargets | TopKTargets | None,
        teacher_states: Mapping[int, Tensor],
    ) -> Tensor:
        """Return the loss of a micro-batch.

        Args:
            input_ids: (batch, seq_len).
            position_ids: (batch, seq_len), restarting at each document.
            counted: (batch, seq_len), what of it counts; its numbers are those of the whole optimizer step over its
                number of micro-batches.
            targets: What the teacher says, if the loss asks.
            teacher_states: Its hidden states that are to be matched, by place.
        """
        hidden, states = self._states.during(lambda: final_hidden(self.student, input_ids, position_ids))
        with torch.autocast(hidden.device.type, enabled=False):  # the loss chooses its own number formats
            loss, distance = distillation_loss(
                hidden.flatten(0, 1),
                OutputHead.of(self.student),
                counted.flatten(),
                targets,
                self._settings,
                compute_dtype(hidden.device),
            )
            if self.intermediate is not None:
                loss = loss + weighed(self.intermediate(states, teacher_states), distance)
        return loss
