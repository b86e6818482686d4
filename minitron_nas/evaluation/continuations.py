"""What models write by themselves: greedy continuations of held-out text, and how long they follow the teacher's.

KL is taken over text that others wrote. A model that generates reads what it has written itself, where small errors add
up, and answers of multiple choice survive what generation does not (arXiv 2603.24652).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from minitron_nas.evaluation.clock import decode, prefill
from minitron_nas.execution.device import autocast, compute_dtype
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.placement import is_larger_than_device
from minitron_nas.text.tokens import PackedTokens

NUM_PROMPTS = 16
"""Held-out sequences whose beginnings are continued, or all where there are fewer."""

NEW_TOKENS = 32
"""Of each continuation, over which models are held against the teacher; fewer where sequences are short."""

MOST_TOKENS = 128
"""Of a continuation that a model may end by itself; fewer where sequences are short."""

_PROMPT_TOKENS = 64


def prompts(tokens: PackedTokens) -> Tensor:
    """Return the beginnings of held-out sequences that are continued, (num_prompts, num_tokens), int64.

    Args:
        tokens: The held-out sequences.
    """
    length = min(_PROMPT_TOKENS, max(tokens.input_ids.shape[1] // 2, 1))
    return tokens.first(NUM_PROMPTS).in_memory().input_ids[:, :length]


@dataclass(frozen=True, slots=True)
class Endings:
    """Where a model ends what it writes.

    Attributes:
        written_tokens: Tokens that it writes before it ends the text, all where it does not; mean over prompts. None
            where no end is known.
        ended_share: The share of texts that it ends by itself.
    """

    written_tokens: float | None = None
    ended_share: float | None = None


def ends_of(model: CausalLM, folder: Path) -> list[int]:
    """Return the tokens at which generation stops, by the model's own settings.

    There are none of a model that is larger than its device: every token would fetch its weights again.

    Args:
        model: As it was loaded.
        folder: Where from.
    """
    given = getattr(model.generation_config, "eos_token_id", None)
    if given is None or is_larger_than_device(folder):
        return []
    return sorted(given) if isinstance(given, list) else [int(given)]


@torch.no_grad()
def continuations(model: CausalLM, tokens: PackedTokens, ends: Collection[int] = ()) -> list[list[int]]:
    """Continue the beginnings of held-out sequences greedily, in the device's dtype whatever the weights' is.

    A model goes on after an end of text, so that all are held against each other over as many tokens.

    Args:
        model: On its device.
        tokens: The held-out sequences; at most half of each is read as a prompt.
        ends: Tokens that end a text; with any, up to `MOST_TOKENS` are written until each prompt's has ended.

    Returns:
        The token ids that each prompt is continued with, `NEW_TOKENS` or more, as many for each.
    """
    training, device = model.training, model.device
    model.eval()
    dtype, read = compute_dtype(device), prompts(tokens).to(device)
    num_new = min(MOST_TOKENS if ends else NEW_TOKENS, max(tokens.input_ids.shape[1] - read.shape[1], 1))
    try:
        with autocast(device, dtype, model.dtype):
            written, cache = prefill(model, read)
            while (num_written := written.shape[1]) < num_new:
                if num_written >= NEW_TOKENS and endings(written.tolist(), ends).ended_share == 1:
                    break
                goal = min(num_written // NEW_TOKENS * NEW_TOKENS + NEW_TOKENS, num_new)
                written = torch.cat([written, decode(model, written[:, -1:], cache, goal - num_written)], dim=1)
            found: list[list[int]] = written.tolist()
    finally:
        model.train(training)
    return found


def until_end(written: Sequence[int], ends: Collection[int]) -> Sequence[int]:
    """Return a continuation up to the first token that ends the text; all of it where there is none.

    Args:
        written: By a model.
        ends: Tokens that end a text.
    """
    return written[: next((number for number, token in enumerate(written) if token in ends), len(written))]


def endings(written: Sequence[Sequence[int]], ends: Collection[int]) -> Endings:
    """Return where a model ends what it writes.

    Args:
        written: Its continuations.
        ends: Tokens that end a text.
    """
    if not ends:
        return Endings()
    lengths = [len(until_end(own, ends)) for own in written]
    ended = [length < len(own) for length, own in zip(lengths, written, strict=True)]
    return Endings(fmean(lengths), fmean(ended))


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
