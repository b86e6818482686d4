"""`OutputHead`: from final hidden states to logits, as the model itself does it."""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from minitron_nas.distillation.deepspeed import whole


@dataclass(frozen=True, slots=True)
class OutputHead:
    """A model's output head with what its config says is done to the logits.

    Attributes:
        weight: (vocab_size, hidden_size).
        scaling: Logits are divided by it (Granite's `logits_scaling`).
        softcap: Logits become softcap tanh(logits / softcap) (Gemma 2's `final_logit_softcapping`).
    """

    weight: Tensor
    scaling: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any) -> Self:
        """Return a causal LM's head; its weight is the model's own parameter, or gathered where it is sharded."""
        config = model.config
        return cls(
            whole(model.get_output_embeddings().weight),
            getattr(config, "logits_scaling", None) or 1.0,
            getattr(config, "final_logit_softcapping", None),
        )

    def detached(self, dtype: torch.dtype | None = None) -> Self:
        """Return the head without gradient, in another dtype if one is given."""
        return replace(self, weight=self.weight.detach().to(dtype or self.weight.dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (num_tokens, vocab_size), float32 or wider.

        Args:
            hidden: (num_tokens, hidden_size); it is cast to the weight's dtype.
        """
        product = hidden.to(self.weight.dtype) @ self.weight.T
        wide = product if product.dtype == torch.float64 else product.float()
        if self.scaling != 1:
            wide = wide / self.scaling
        return wide if self.softcap is None else self.softcap * torch.tanh(wide / self.softcap)

    def gradient_(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn, in place, a gradient with respect to logits into one with respect to the matrix product.

        Args:
            gradient: (num_tokens, vocab_size).
            logits: (num_tokens, vocab_size), what `logits` returned.
        """
        if self.softcap is not None:
            gradient.mul_(1 - (logits / self.softcap).square_())
        return gradient.div_(self.scaling) if self.scaling != 1 else gradient
