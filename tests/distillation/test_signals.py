"""The teacher's final hidden states: from a cache as from the teacher itself."""

import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_nas.distillation.signals import (
    HiddenCache,
    OnlineTeacher,
    load_for_inference,
    load_for_training,
    open_signal,
    write_hidden_cache,
)
from minitron_nas.distillation.tokens import pack
from minitron_nas.errors import DiskSpaceError
from minitron_nas.testing import tiny_checkpoint, tiny_config, tiny_model

DTYPES = (torch.float32, torch.bfloat16)
CPU = torch.device("cpu")


def some_tokens(num_sequences, sequence_length=16):
    generator = np.random.default_rng(7)
    pieces = [generator.integers(3, 320, size=generator.integers(3, 24)) for _ in range(2 * num_sequences + 4)]
    return pack(pieces, sequence_length).first(num_sequences)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "nemotron", "qwen2"])
@torch.no_grad()
def test_the_head_times_the_final_hidden_states_gives_the_models_logits(model_type):
    model, tokens = tiny_model(tiny_config(model_type)), some_tokens(2)
    signal = OnlineTeacher(model)
    logits = signal.head.logits(signal.hidden(torch.arange(2), tokens))
    expected = model(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cache_gives_the_states_and_the_head_of_the_online_teacher_to_the_bit(tmp_path, dtype, tied):
    model, tokens = tiny_model(tiny_config("llama", tied=tied), dtype=dtype), some_tokens(5)
    write_hidden_cache(model, tokens, tmp_path / "cache", batch_sequences=2)
    online, cache = OnlineTeacher(model), HiddenCache(tmp_path / "cache", CPU)
    assert cache.head.weight.dtype == dtype
    assert torch.equal(cache.head.weight, online.head.weight)
    for indices, batch in tokens.batches(2):
        states = cache.hidden(indices, batch)
        assert states.dtype == dtype
        assert torch.equal(states, online.hidden(indices, batch))


def test_a_cache_is_read_in_any_order(tmp_path):
    model, tokens = tiny_model(tiny_config("llama")), some_tokens(5)
    write_hidden_cache(model, tokens, tmp_path / "cache")
    cache = HiddenCache(tmp_path / "cache", CPU)
    whole = cache.hidden(torch.arange(5), tokens)
    assert torch.equal(cache.hidden(torch.tensor([4, 0, 4]), tokens), whole[[4, 0, 4]])


def test_a_half_precision_teacher_is_cached_in_float32_without_loss(tmp_path):
    model, tokens = tiny_model(tiny_config("llama"), dtype=torch.float16), some_tokens(2)
    write_hidden_cache(model, tokens, tmp_path / "cache")
    states = HiddenCache(tmp_path / "cache", CPU).hidden(torch.arange(2), tokens)
    assert states.dtype == torch.float32
    assert torch.equal(states.half(), OnlineTeacher(model).hidden(torch.arange(2), tokens))


@pytest.mark.parametrize(("dtype", "num_bytes"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_cache_takes_one_value_per_token_and_hidden_unit(tmp_path, dtype, num_bytes):
    model = tiny_model(tiny_config("llama"), dtype=dtype)
    write_hidden_cache(model, some_tokens(5), tmp_path / "cache")
    assert (tmp_path / "cache" / "hidden.bin").stat().st_size == 5 * 16 * 48 * num_bytes


def test_writing_a_cache_reports_its_tokens(tmp_path):
    seen = []
    write_hidden_cache(
        tiny_model(tiny_config("llama")),
        some_tokens(5),
        tmp_path / "cache",
        batch_sequences=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(32, 80), (64, 80), (80, 80)]


def test_a_disk_that_cannot_hold_the_cache_is_refused_before_the_teacher_runs(tmp_path, monkeypatch):
    model = tiny_model(tiny_config("llama"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 5 * 16 * 48 * 4 - 1))
    monkeypatch.setattr(model.model, "forward", None)
    with pytest.raises(DiskSpaceError, match=r"the cache of the teacher's hidden states needs 0\.00 GB in .*cache"):
        write_hidden_cache(model, some_tokens(5), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_killed_writer_leaves_no_cache_and_the_next_one_writes_it_whole(tmp_path):
    model, tokens = tiny_model(tiny_config("llama")), some_tokens(3)

    def die(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_hidden_cache(model, tokens, tmp_path / "cache", batch_sequences=1, progress=die)
    assert not (tmp_path / "cache").exists()
    write_hidden_cache(model, tokens, tmp_path / "cache", batch_sequences=1)
    assert HiddenCache(tmp_path / "cache", CPU).hidden(torch.arange(3), tokens).shape == (3, 16, 48)


def test_the_teacher_is_left_as_it_was(tmp_path):
    model = tiny_model(tiny_config("llama"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write_hidden_cache(model, some_tokens(2), tmp_path / "cache")
    OnlineTeacher(model).hidden(torch.arange(2), some_tokens(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_states_carry_no_graph():
    signal = OnlineTeacher(tiny_model(tiny_config("llama")))
    assert not signal.hidden(torch.arange(1), some_tokens(1)).requires_grad
    assert not signal.head.weight.requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_folder_is_loaded_in_the_compute_dtype_for_inference_and_in_float32_for_training(
    tmp_path, monkeypatch, dtype
):
    folder = tiny_checkpoint(tmp_path, "llama", dtype=torch.bfloat16)
    monkeypatch.setattr("minitron_nas.distillation.signals.compute_dtype", lambda device: dtype)
    assert {parameter.dtype for parameter in load_for_inference(folder).parameters()} == {dtype}
    assert {parameter.dtype for parameter in load_for_training(folder).parameters()} == {torch.float32}


def test_a_signal_is_the_cache_where_there_is_one_and_else_the_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr("minitron_nas.distillation.signals.compute_dtype", lambda device: torch.float32)
    folder = tiny_checkpoint(tmp_path / "teacher", "llama")
    tokens = some_tokens(2)
    online = open_signal(folder, None)
    assert isinstance(online, OnlineTeacher)
    write_hidden_cache(AutoModelForCausalLM.from_pretrained(folder), tokens, tmp_path / "cache")
    cached = open_signal(folder, tmp_path / "cache")
    assert isinstance(cached, HiddenCache)
    assert torch.equal(cached.hidden(torch.arange(2), tokens), online.hidden(torch.arange(2), tokens))
