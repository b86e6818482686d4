"""`OutputHead`: from final hidden states to logits, as the model itself does it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Self

import torch
from torch import Tensor

from minitron_nas.execution.deepspeed import whole
from minitron_nas.families.catalog import layouts
from minitron_nas.models.causal_lm import CausalLM


@dataclass(frozen=True, slots=True)
class OutputHead:
    """A model's output head with what its config says is done to the logits.

    Attributes:
        weight: (vocab_size, hidden_size).
        scaling: Logits are divided by it (Granite's `logits_scaling`; Cohere's `logit_scale`, Falcon-H1's
            `lm_head_multiplier` and the `logits_scaling` of some families multiply, so this is their inverse).
        softcap: Logits become softcap tanh(logits / softcap) (Gemma 2's `final_logit_softcapping`).
        bias: (vocab_size,), added before either; few models have one.
    """

    weight: Tensor
    scaling: float = 1.0
    softcap: float | None = None
    bias: Tensor | None = None

    @classmethod
    def of(cls, model: CausalLM) -> Self:
        """Return a model's head: its own parameters, gathered where they are sharded.

        Args:
            model: The model.
        """
        config, output = model.config, model.get_output_embeddings()
        factors = (getattr(config, key, None) or 1.0 for key in ("logit_scale", "lm_head_multiplier"))
        layout, own = layouts().get(config.model_type), getattr(config, "logits_scaling", None) or 1.0
        scaling = (1 / own if layout is not None and layout.multiplies_logits else own) / prod(factors)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(whole(output.weight), scaling, softcap, _optional(getattr(output, "bias", None), whole))

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, padding included."""
        return len(self.weight)

    def first(self, vocab_size: int) -> Self:
        """Return the head of the first entries of the vocabulary alone; gradients reach the whole.

        Args:
            vocab_size: How many entries.
        """
        if vocab_size == self.vocab_size:
            return self
        return replace(self, weight=self.weight[:vocab_size], bias=_optional(self.bias, lambda bias: bias[:vocab_size]))

    def detached(self, dtype: torch.dtype | None = None) -> Self:
        """Return the head without gradient.

        Args:
            dtype: Of the result; the head's own by default.
        """

        def plain(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype or tensor.dtype)

        return replace(self, weight=plain(self.weight), bias=_optional(self.bias, plain))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (num_tokens, vocab_size), float32 or wider.

        Args:
            hidden: (num_tokens, hidden_size); it is cast to the weight's dtype.
        """
        return self.finish(self.product(hidden))

    def product(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Return hidden states times weight, (num_tokens, vocab_size), in the weight's dtype.

        Args:
            hidden: (num_tokens, hidden_size); it is cast to the weight's dtype.
            out: (at least num_tokens, vocab_size), where it is written to, if given.
        """
        into = None if out is None else out[: len(hidden)]
        return torch.mm(hidden.to(self.weight.dtype), self.weight.T, out=into)

    def finish(self, product: Tensor) -> Tensor:
        """Return the logits that a product becomes, (num_tokens, vocab_size), float32 or wider.

        Args:
            product: (num_tokens, vocab_size), what `product` returned.
        """
        wide = product if product.dtype == torch.float64 else product.float()
        if self.bias is not None:
            wide = wide + self.bias
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


def _optional(tensor: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if tensor is None else change(tensor)
