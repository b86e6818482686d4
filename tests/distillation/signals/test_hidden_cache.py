"""A cache of final hidden states is the online teacher to the bit, and says so when it is not."""

import numpy as np
import pytest
import torch

from minitron_nas.distillation.signals import folder as signal_folder
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import HiddenCache, write_hidden_cache
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.errors import CacheError
from minitron_nas.testing import tiny_config, tiny_model
from minitron_nas.text.packing import pack

DTYPES = (torch.float32, torch.bfloat16)
CPU = torch.device("cpu")


def some_tokens(num_sequences, sequence_length=16):
    generator = np.random.default_rng(7)
    pieces = [generator.integers(3, 320, size=generator.integers(3, 24)) for _ in range(2 * num_sequences + 4)]
    return pack(pieces, sequence_length).first(num_sequences)


def written(folder, model, tokens, **options):
    place = SignalPlace(folder, "teacher", tokens)
    write_hidden_cache(model, place, **options)
    return HiddenCache(place, CPU)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cache_gives_the_states_and_the_head_of_the_online_teacher_to_the_bit(tmp_path, dtype, tied):
    model, tokens = tiny_model(tiny_config("llama", tied=tied), dtype=dtype), some_tokens(5)
    online, cache = OnlineTeacher(model), written(tmp_path, model, tokens, batch_sequences=2)
    assert cache.head.weight.dtype == dtype
    assert torch.equal(cache.head.weight, online.head.weight)
    for indices, batch in tokens.batches(2):
        targets = cache.targets(indices, batch)
        assert targets.hidden.dtype == dtype
        assert torch.equal(targets.hidden, online.targets(indices, batch).hidden)
        assert torch.equal(targets.of(slice(3, 9)).logits(), online.targets(indices, batch).of(slice(3, 9)).logits())


@pytest.mark.parametrize(
    ("model_type", "changes"), [("gemma2", {"final_logit_softcapping": 3.0}), ("granite", {"logits_scaling": 8.0})]
)
def test_what_the_model_does_to_its_logits_is_kept(tmp_path, model_type, changes):
    model, tokens = tiny_model(tiny_config(model_type, **changes)), some_tokens(2)
    cache = written(tmp_path, model, tokens)
    expected = model(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False).logits
    logits = cache.targets(torch.arange(2), tokens).logits()
    torch.testing.assert_close(logits, expected.detach().flatten(0, 1), rtol=1e-5, atol=1e-5)
    assert (cache.head.softcap, cache.head.scaling) != (None, 1.0)


def test_a_head_with_a_bias_keeps_it(tmp_path):
    model, tokens = tiny_model(tiny_config("llama")), some_tokens(2)
    model.lm_head.bias = torch.nn.Parameter(torch.randn(model.config.vocab_size))
    cache, online = written(tmp_path, model, tokens), OnlineTeacher(model)
    targets = [signal.targets(torch.arange(2), tokens).logits() for signal in (cache, online)]
    assert torch.equal(*targets)
    assert torch.equal(cache.head.bias, model.lm_head.bias)


def test_a_cache_is_read_in_any_order_and_across_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(signal_folder, "_SHARD_BYTES", 2 * 16 * 48 * 4)
    model, tokens = tiny_model(tiny_config("llama")), some_tokens(5)
    cache = written(tmp_path, model, tokens, batch_sequences=1)
    assert [file.name for file in sorted(tmp_path.glob("*.shard"))] == ["00000.shard", "00001.shard", "00002.shard"]
    whole = cache.targets(torch.arange(5), tokens).hidden.view(5, -1)
    assert torch.equal(cache.targets(torch.tensor([4, 0, 4]), tokens).hidden.view(3, -1), whole[[4, 0, 4]])


def test_a_half_precision_teacher_is_cached_without_loss(tmp_path):
    model, tokens = tiny_model(tiny_config("llama"), dtype=torch.float16), some_tokens(2)
    targets = written(tmp_path, model, tokens).targets(torch.arange(2), tokens)
    online = OnlineTeacher(model).targets(torch.arange(2), tokens)
    assert targets.hidden.dtype == torch.float32
    assert torch.equal(targets.hidden.half(), online.hidden)
    assert torch.equal(targets.logits(), online.logits())


def test_states_may_be_rounded_to_bfloat16(tmp_path):
    model, tokens = tiny_model(tiny_config("llama")), some_tokens(2)
    targets = written(tmp_path, model, tokens, dtype=torch.bfloat16).targets(torch.arange(2), tokens)
    online = OnlineTeacher(model).targets(torch.arange(2), tokens)
    assert torch.equal(targets.hidden, online.hidden.bfloat16())
    assert targets.head.weight.dtype == torch.float32


@pytest.mark.parametrize(("dtype", "num_bytes"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_cache_takes_one_value_per_token_and_hidden_unit_and_a_checksum_per_sequence(tmp_path, dtype, num_bytes):
    written(tmp_path, tiny_model(tiny_config("llama"), dtype=dtype), some_tokens(5))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.shard")) == 5 * (16 * 48 * num_bytes + 16)


def test_two_caches_of_one_teacher_hold_its_head_once_in_memory(tmp_path):
    model = tiny_model(tiny_config("llama"))
    one, other = written(tmp_path / "one", model, some_tokens(2)), written(tmp_path / "other", model, some_tokens(3))
    assert one.head.weight is other.head.weight


def test_the_teacher_is_left_as_it_was(tmp_path):
    model = tiny_model(tiny_config("llama"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    written(tmp_path, model, some_tokens(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("damage", ["a value", "the header", "the name", "the shape", "the type", "cut short", "gone"])
def test_a_damaged_head_is_found_when_the_cache_is_opened_and_written_again(tmp_path, damage):
    model, tokens = tiny_model(tiny_config("llama"), seed=3), some_tokens(2)
    write_hidden_cache(model, SignalPlace(tmp_path, "teacher", tokens))
    head = tmp_path / "head.safetensors"
    good = head.read_bytes()
    changes = {
        "a value": good[:-1] + bytes([good[-1] ^ 1]),
        "the header": good[:8] + bytes([good[8] ^ 1]) + good[9:],
        "the name": good.replace(b'"head"', b'"heaf"'),
        "the shape": good.replace(b"[320,48]", b"[48,320]"),
        "the type": good.replace(b'"F32"', b'"I32"'),
        "cut short": good[:-4],
        "gone": b"",
    }
    assert good not in changes.values()
    head.write_bytes(changes[damage])
    if damage == "gone":
        head.unlink()
    with pytest.raises(CacheError, match=r"head\.safetensors (is not what was .*|cannot be read .*); delete it"):
        HiddenCache(SignalPlace(tmp_path, "teacher", tokens), CPU)
    head.unlink(missing_ok=True)
    shard = tmp_path / "00000.shard"
    stamp = shard.stat().st_mtime_ns
    written(tmp_path, model, tokens)
    assert head.read_bytes() == good
    assert shard.stat().st_mtime_ns == stamp
