"""What models write by themselves: greedy continuations of held-out text, and how long they follow the teacher's.

KL is taken over text that others wrote. A model that generates reads what it has written itself, where small errors add
up, and answers of multiple choice survive what generation does not (arXiv 2603.24652).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minitron_nas.evaluation.clock import decode, prefill
from minitron_nas.execution.device import autocast, compute_dtype
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.text.tokens import PackedTokens

NUM_PROMPTS = 16
"""Held-out sequences whose beginnings are continued, or all where there are fewer."""

NEW_TOKENS = 32
"""Of each continuation; fewer where sequences are short."""

_PROMPT_TOKENS = 64


def prompts(tokens: PackedTokens) -> Tensor:
    """Return the beginnings of held-out sequences that are continued, (num_prompts, num_tokens), int64.

    Args:
        tokens: The held-out sequences.
    """
    length = min(_PROMPT_TOKENS, max(tokens.input_ids.shape[1] // 2, 1))
    return tokens.first(NUM_PROMPTS).in_memory().input_ids[:, :length]


@torch.no_grad()
def continuations(model: CausalLM, tokens: PackedTokens) -> list[list[int]]:
    """Continue the beginnings of held-out sequences greedily, in the device's dtype whatever the weights' is.

    Args:
        model: On its device.
        tokens: The held-out sequences; at most half of each is read as a prompt.

    Returns:
        The token ids that each prompt is continued with, at most `NEW_TOKENS` and as many for each.
    """
    training, device = model.training, model.device
    model.eval()
    dtype, read = compute_dtype(device), prompts(tokens).to(device)
    num_new = min(NEW_TOKENS, max(tokens.input_ids.shape[1] - read.shape[1], 1))
    try:
        with autocast(device, dtype, model.dtype):
            first, cache = prefill(model, read)
            written: list[list[int]] = torch.cat([first, decode(model, first, cache, num_new - 1)], dim=1).tolist()
    finally:
        model.train(training)
    return written


def agreement(written: Sequence[Sequence[int]], teacher: Sequence[Sequence[int]]) -> list[int]:
    """Return how many tokens of each continuation are the teacher's, before the first that is not.

    Args:
        written: By the model.
        teacher: By the teacher, after the same prompts.
    """
    shared = []
    for own, other in zip(written, teacher, strict=True):
        equal = [one == two for one, two in zip(own, other, strict=True)]
        shared.append(equal.index(False) if False in equal else len(equal))
    return shared


def repetition(written: Sequence[Sequence[int]]) -> float:
    """Return the share of runs of four tokens that have stood in the same continuation before.

    Args:
        written: By a model; text that repeats itself has many, text of people hardly any.
    """
    runs = [[tuple(own[start : start + 4]) for start in range(len(own) - 3)] for own in written]
    total = sum(map(len, runs))
    return 1 - sum(len(set(own)) for own in runs) / total if total else 0.0
