"""The most probable tokens against the full distribution, and what storing them costs."""

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax
from torch.utils._python_dispatch import TorchDispatchMode

from minitron_nas.distillation.signals import folder as signal_folder
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.distillation.signals.top_k_cache import (
    LOG_PROB_DTYPE,
    TopKCache,
    most_probable,
    top_k_bytes,
    write_top_k_cache,
)
from minitron_nas.testing import tiny_config, tiny_model
from minitron_nas.text.packing import pack

CPU = torch.device("cpu")
NUM_TOKENS = 5 * 16


def some_tokens(num_sequences, sequence_length=16):
    generator = np.random.default_rng(7)
    pieces = [generator.integers(3, 320, size=generator.integers(3, 24)) for _ in range(2 * num_sequences + 4)]
    return pack(pieces, sequence_length).first(num_sequences)


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_config("llama"))


@pytest.fixture(scope="module")
def full(model):
    """The teacher's log-probabilities over five sequences, (num_tokens, vocab_size)."""
    tokens = some_tokens(5)
    with torch.no_grad():
        logits = model(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False).logits
    return log_softmax(logits.flatten(0, 1), dim=-1)


def written(folder, model, k, **options):
    place = SignalPlace(folder, "teacher", some_tokens(5))
    write_top_k_cache(model, place, k, **options)
    return TopKCache(place, CPU)


@pytest.mark.parametrize("k", [1, 7, 320])
def test_they_are_the_largest_log_probabilities_under_the_full_softmax(tmp_path, model, full, k):
    targets = written(tmp_path, model, k).targets(torch.arange(5), some_tokens(5))
    assert targets.log_probs.shape == targets.indices.shape == (NUM_TOKENS, k)
    assert (targets.log_probs.dtype, targets.indices.dtype) == (torch.float32, torch.int64)
    assert (targets.log_probs.diff(dim=-1) <= 0).all()
    torch.testing.assert_close(targets.log_probs, full.topk(k).values, rtol=2**-11, atol=2e-5)
    torch.testing.assert_close(full.gather(-1, targets.indices), full.topk(k).values, rtol=0, atol=2e-5)


def test_a_vocabulary_that_has_no_more_is_kept_whole(tmp_path, model, full):
    targets = written(tmp_path, model, 1024).targets(torch.arange(5), some_tokens(5))
    assert torch.equal(targets.indices.sort().values, torch.arange(320).expand(NUM_TOKENS, -1))
    rebuilt = torch.zeros_like(full).scatter(-1, targets.indices, targets.log_probs)
    kl = (full.exp() * (full - log_softmax(rebuilt, dim=-1))).sum(dim=-1)
    assert kl.abs().max() < 4e-6


def test_a_cache_is_read_in_any_order_and_across_shards(tmp_path, model, monkeypatch):
    monkeypatch.setattr(signal_folder, "_SHARD_BYTES", 2 * 16 * top_k_bytes(7))
    cache = written(tmp_path, model, 7, batch_sequences=1)
    assert len(list(tmp_path.glob("*.shard"))) == 3
    whole = cache.targets(torch.arange(5), some_tokens(5))
    some = cache.targets(torch.tensor([4, 0, 4]), some_tokens(5))
    for one, all_of_them in ((some.log_probs, whole.log_probs), (some.indices, whole.indices)):
        assert torch.equal(one.view(3, 16, 7), all_of_them.view(5, 16, 7)[[4, 0, 4]])


def test_an_entry_takes_six_bytes_and_all_others_together_two(tmp_path, model):
    written(tmp_path, model, 10)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.shard")) == NUM_TOKENS * (10 * 6 + 2) + 5 * 16
    assert top_k_bytes(10) == 62


@pytest.mark.parametrize("k", [1, 7, 319])
def test_what_is_left_for_all_other_tokens_is_kept_too(tmp_path, model, full, k):
    targets = written(tmp_path, model, k).targets(torch.arange(5), some_tokens(5))
    left = full.exp().sort(dim=-1).values[:, : 320 - k].sum(dim=-1)
    torch.testing.assert_close(targets.rest, left.log(), rtol=2**-11, atol=2e-5)
    assert targets.vocab_size == 320


@pytest.mark.parametrize("model_type", ["gemma2", "granite"])
def test_what_the_model_does_to_its_logits_is_in_them(tmp_path, model_type):
    changes = {"gemma2": {"final_logit_softcapping": 3.0}, "granite": {"logits_scaling": 8.0}}[model_type]
    model, tokens = tiny_model(tiny_config(model_type, **changes)), some_tokens(5)
    targets = written(tmp_path, model, 4).targets(torch.arange(5), tokens)
    with torch.no_grad():
        logits = model(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False).logits
    expected = log_softmax(logits.flatten(0, 1), dim=-1).topk(4).values
    torch.testing.assert_close(targets.log_probs, expected, rtol=2**-11, atol=2e-5)


def test_logits_exist_for_a_chunk_of_tokens_only(model):
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            parts = result if isinstance(result, tuple) else (result,)
            sizes.extend(part.numel() for part in parts if isinstance(part, torch.Tensor))
            return result

    tokens = some_tokens(64)
    targets = OnlineTeacher(model).targets(torch.arange(64), tokens)
    with Watch():
        most_probable(targets, tokens.num_tokens, 2)
    assert max(sizes) == 256 * 320 < tokens.num_tokens * 320


def test_rounding_the_log_probabilities_changes_the_distribution_by_what_the_docs_say():
    generator = torch.Generator().manual_seed(0)
    figures = {torch.float16: [], torch.bfloat16: []}
    for scale in (1.0, 3.0, 6.0):
        logits = scale * torch.randn(32, 49_152, generator=generator, dtype=torch.float64)
        kept = log_softmax(logits, dim=-1).topk(1024).values
        exact = log_softmax(kept, dim=-1)
        for dtype, found in figures.items():
            kl = (exact.exp() * (exact - log_softmax(kept.to(dtype).double(), dim=-1))).sum(dim=-1)
            found.append(kl.mean().item())
    assert 1e-6 < max(figures[LOG_PROB_DTYPE]) < 2.5e-6
    assert 1e-4 < max(figures[torch.bfloat16]) < 1.6e-4
