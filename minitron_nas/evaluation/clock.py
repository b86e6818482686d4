"""What prefill and decode are, and how long they take."""

import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minitron_nas.models.causal_lm import CausalLM


def random_prompt(model: CausalLM, batch: int, num_tokens: int) -> Tensor:
    """Return the same tokens for every model of a vocabulary, (batch, num_tokens), on the model's device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (batch, num_tokens), generator=generator).to(model.device)


def prefill(model: CausalLM, prompt: Tensor) -> tuple[Tensor, Any]:
    """Read a prompt as generation does.

    Args:
        model: On its device.
        prompt: (batch, num_tokens).

    Returns:
        The next tokens, (batch, 1), and the cache of keys and values.
    """
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1:].argmax(dim=-1), cache_of(output)


def cache_of(output: Any) -> Any:
    """Return what a model keeps of the tokens that it has read, by whichever name its transformers calls it.

    Args:
        output: Of a forward pass with `use_cache`.
    """
    name = "cache" if hasattr(output, "cache") else "past_key_values"  # 5.24 renames it and warns of the old name
    return getattr(output, name)


def decode(model: CausalLM, tokens: Tensor, cache: Any, num_tokens: int) -> Tensor:
    """Write some tokens, each the most probable after those before.

    Args:
        model: On its device.
        tokens: (batch, 1), what comes first.
        cache: Of what comes before; it grows.
        num_tokens: How many.

    Returns:
        (batch, num_tokens).
    """
    # The argument has been renamed, too.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    written = [tokens[:, :0]]
    for _ in range(num_tokens):
        output = model(input_ids=written[-1] if len(written) > 1 else tokens, use_cache=True, **{name: cache})
        written.append(output.logits[:, -1:].argmax(dim=-1))
    return torch.cat(written, dim=1)


def timed(device: torch.device, action: Callable[[], Any]) -> tuple[float, Any]:
    """Return how many seconds something takes until the device is done with it, and what it returns."""
    _synchronize(device)
    started = time.perf_counter()
    result = action()
    _synchronize(device)
    return time.perf_counter() - started, result


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
