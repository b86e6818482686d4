"""Validation against transformers' own loss and against the teacher itself."""

import math

import numpy as np
import pytest
import torch

from minitron_nas.distillation.loss.losses import forward_kl
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import HiddenCache, write_hidden_cache
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.distillation.signals.top_k_cache import TopKCache, write_top_k_cache
from minitron_nas.errors import CacheError
from minitron_nas.testing import tiny_config, tiny_model
from minitron_nas.text.packing import pack
from minitron_nas.text.token_log import TokenStream

MODULES = ("distillation.loss.validation", "models.loading")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request, monkeypatch):
    """Make the tests' results independent of what this machine computes best."""
    for module in MODULES:
        monkeypatch.setattr(f"minitron_nas.{module}.compute_dtype", lambda device: request.param)
    return request.param


@pytest.fixture
def _float32(monkeypatch):
    for module in MODULES:
        monkeypatch.setattr(f"minitron_nas.{module}.compute_dtype", lambda device: torch.float32)


def some_tokens(num_sequences, sequence_length=16):
    generator = np.random.default_rng(7)
    pieces = [generator.integers(3, 320, size=generator.integers(3, 24)) for _ in range(2 * num_sequences + 4)]
    return pack(pieces, sequence_length).first(num_sequences)


def test_the_teacher_has_no_kl_to_its_own_cache(tmp_path, dtype):
    teacher, tokens = tiny_model(tiny_config("llama"), dtype=dtype), some_tokens(5)
    place = SignalPlace(tmp_path / "cache", "teacher", tokens)
    write_hidden_cache(teacher, place, batch_sequences=4)
    losses = validate(teacher, tokens, HiddenCache(place, torch.device("cpu")))
    assert losses.kl_nats == 0
    assert losses.num_tokens == 5 * 16


@pytest.mark.usefixtures("_float32")
def test_the_kl_of_each_sequence_is_what_it_has_alone_times_its_tokens():
    teacher, student = (tiny_model(tiny_config("llama"), seed=seed) for seed in (1, 2))
    generator = np.random.default_rng(3)
    begun = TokenStream([np.r_[1, generator.integers(3, 320, size=40)] for _ in range(2)], 1)
    for tokens, counts in ((some_tokens(5), [16] * 5), (pack(begun, 16), [16, 15, 15, 15, 15])):
        signal, losses = OnlineTeacher(teacher), validate(student, tokens, OnlineTeacher(teacher))
        alone = [validate(student, one, signal) for _, one in tokens.batches(1)]
        assert [each.num_tokens for each in alone] == counts
        expected = [each.kl_nats * each.num_tokens for each in alone]
        assert losses.sequence_kl_nats == pytest.approx(expected, rel=1e-4)
        assert sum(losses.sequence_kl_nats) == pytest.approx(losses.kl_nats * losses.num_tokens, rel=1e-9)
        labels = tokens.num_labels().tolist()
        expected = [each.loss_nats * number for each, number in zip(alone, labels, strict=True)]
        assert losses.sequence_loss_nats == pytest.approx(expected, rel=1e-4)
        assert sum(losses.sequence_loss_nats) == pytest.approx(losses.loss_nats * sum(labels), rel=1e-9)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "nemotron", "qwen2"])
@pytest.mark.usefixtures("_float32")
def test_the_loss_of_a_single_document_is_that_of_transformers(model_type):
    model = tiny_model(tiny_config(model_type))
    tokens = pack([np.random.default_rng(0).integers(3, 320, size=24)], 24)
    losses = validate(model, tokens, None)
    expected = model(input_ids=tokens.input_ids, labels=tokens.input_ids, use_cache=False).loss.item()
    assert losses.loss_nats == pytest.approx(expected, rel=1e-6)
    assert losses.num_tokens == 23
    assert math.isnan(losses.kl_nats)


@pytest.mark.usefixtures("_float32")
def test_the_kl_is_the_mean_over_all_tokens_of_the_models_own_logits():
    teacher, student, tokens = (
        tiny_model(tiny_config("llama"), 1),
        tiny_model(tiny_config("llama", num_hidden_layers=2), 2),
        some_tokens(3),
    )
    losses = validate(student, tokens, OnlineTeacher(teacher))
    with torch.no_grad():
        inputs = {"input_ids": tokens.input_ids, "position_ids": tokens.position_ids, "use_cache": False}
        logits = [model(**inputs).logits.flatten(0, 1) for model in (student, teacher)]
    assert losses.kl_nats == pytest.approx(forward_kl(*logits).mean().item(), rel=1e-5)


@pytest.mark.usefixtures("_float32")
def test_the_signal_changes_nothing_about_the_loss():
    student, tokens = tiny_model(tiny_config("llama"), 2), some_tokens(3)
    with_teacher = validate(student, tokens, OnlineTeacher(tiny_model(tiny_config("llama"), 1)))
    assert validate(student, tokens, None).loss_nats == with_teacher.loss_nats


@pytest.mark.usefixtures("_float32")
def test_the_most_probable_tokens_are_no_signal_to_validate_with(tmp_path):
    model, tokens = tiny_model(tiny_config("llama")), some_tokens(2)
    place = SignalPlace(tmp_path, "teacher", tokens)
    write_top_k_cache(model, place, 320)
    signal = TopKCache(place, torch.device("cpu"))
    with pytest.raises(CacheError, match="the KL over the whole vocabulary, and the signal holds the most probable"):
        validate(model, tokens, signal)


@pytest.mark.usefixtures("_float32")
def test_the_batch_changes_nothing_but_rounding():
    model, tokens = tiny_model(tiny_config("llama")), some_tokens(5)
    losses = [validate(model, tokens, None, batch_sequences=size).loss_nats for size in (1, 2, 5)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_float32_weights_are_validated_in_the_compute_dtype(monkeypatch):
    # A student in training has float32 weights; its bfloat16 twin is what is exported.
    monkeypatch.setattr("minitron_nas.distillation.loss.validation.compute_dtype", lambda device: torch.bfloat16)
    wide, tokens = tiny_model(tiny_config("llama")), some_tokens(4)
    narrow = tiny_model(tiny_config("llama"), dtype=torch.bfloat16)
    assert validate(wide, tokens, None).loss_nats == pytest.approx(validate(narrow, tokens, None).loss_nats, rel=2e-3)
    assert wide.dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("_float32")
def test_dropout_is_off_while_validating_and_the_mode_is_restored(training):
    config = tiny_config("llama", attention_dropout=0.5)
    model, tokens = tiny_model(config).train(training), some_tokens(2)
    assert validate(model, tokens, None).loss_nats == validate(model, tokens, None).loss_nats
    assert model.training is training


@pytest.mark.usefixtures("_float32")
def test_progress_counts_tokens():
    seen = []
    model, tokens = tiny_model(tiny_config("llama")), some_tokens(3)
    validate(model, tokens, None, batch_sequences=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(32, 48), (48, 48)]


@pytest.mark.usefixtures("_float32")
def test_an_added_bos_counts_neither_in_the_loss_nor_in_the_kl():
    teacher, student = tiny_model(tiny_config("llama"), seed=1), tiny_model(tiny_config("llama"), seed=2)
    ids = np.concatenate([[1], np.random.default_rng(0).integers(3, 320, size=40)])
    tokens = pack(TokenStream([ids], 1), 8)
    losses = validate(student, tokens, OnlineTeacher(teacher), batch_sequences=2)
    with torch.no_grad():
        ours, theirs = (model(input_ids=tokens.input_ids, use_cache=False).logits for model in (student, teacher))
    kl = forward_kl(ours.flatten(0, 1), theirs.flatten(0, 1)).view(tokens.input_ids.shape)
    assert losses.kl_nats == pytest.approx(
        (kl[0].sum() + kl[1:, 1:].sum()).item() / (kl.numel() - len(kl) + 1), rel=1e-5
    )
    nll = -ours.log_softmax(-1)[:, :-1].gather(2, tokens.input_ids[:, 1:, None])[..., 0]
    assert losses.loss_nats == pytest.approx(
        (nll.sum() - nll[1:, 0].sum()).item() / (nll.numel() - len(nll) + 1), rel=1e-5
    )
    assert losses.num_tokens == kl.numel() - len(kl) + 1
