"""Attention by document against transformers' masks: CPU seconds of SmolLM2-shaped layers on packed text.

Prints, for sequences of several lengths and the documents in them, the seconds of a forward and a backward pass through
eight layers of random weights, in turns, medians of three, and how far the two are apart.
"""

import time
from statistics import median

import pytest
import torch
from transformers import LlamaConfig

from minitron_nas.distillation.signals.teacher import final_hidden
from minitron_nas.models.attention import attend_by_document
from minitron_nas.testing import tiny_model

SHAPE = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 512,
}  # fmt: skip
NUM_TOKENS, ROUNDS = 2048, 3
DOCUMENTS = ([100, 156], [200, 312], [400, 300, 324], [500, 700, 848], [100] * 20 + [48], [2048])
GOAL = 1.4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_packed_text_takes_less_time_by_document_than_through_a_mask() -> None:
    masked, by_document = (tiny_model(LlamaConfig(**SHAPE, max_position_embeddings=NUM_TOKENS)) for _ in range(2))
    attend_by_document(by_document)
    ratios = {}
    for documents in DOCUMENTS:
        length = sum(documents)
        positions = torch.cat([torch.arange(size) for size in documents]).repeat(NUM_TOKENS // length, 1)
        ids = torch.randint(0, 512, positions.shape, generator=torch.Generator().manual_seed(0))
        seconds: dict[bool, list[float]] = {True: [], False: []}
        states = {}
        for _ in range(ROUNDS):
            for model in (masked, by_document):
                model.zero_grad()
                begun = time.process_time()
                hidden = final_hidden(model, ids, positions)
                hidden.sum().backward()
                seconds[model is masked].append(time.process_time() - begun)
                states[model is masked] = hidden.detach()
        with_mask, without = (median(seconds[which]) for which in (True, False))
        ratios[length, len(documents)] = with_mask / without
        apart = float((states[True] - states[False]).abs().max())
        print(
            f"{NUM_TOKENS} tokens, {length} a sequence of {len(documents)} documents: {with_mask:.2f} s by a mask, "
            f"{without:.2f} s by document, {with_mask / without:.2f} times; {apart:.1e} apart at most"
        )
        assert apart < 1e-4
    assert min(ratios[2048, 3], ratios[2048, 21]) > GOAL
