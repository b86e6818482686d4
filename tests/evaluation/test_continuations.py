from pathlib import Path

import numpy as np
import pytest
import torch

from minitron_nas.evaluation import continuations as module
from minitron_nas.evaluation.continuations import (
    MOST_TOKENS,
    NEW_TOKENS,
    Endings,
    agreement,
    continuations,
    endings,
    ends_of,
    prompts,
    repetition,
    until_end,
)
from minitron_nas.testing import tiny_config, tiny_model
from minitron_nas.text.packing import pack
from minitron_nas.text.tokens import PackedTokens


@pytest.fixture
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "compute_dtype", lambda device: torch.float32)


def some_tokens(num_sequences: int, length: int = 96) -> PackedTokens:
    return pack([np.random.default_rng(7).integers(3, 320, size=num_sequences * length)], length)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.usefixtures("_float32")
def test_text_is_continued_as_transformers_generates_greedily(model_type: str) -> None:
    model, tokens = tiny_model(tiny_config(model_type)), some_tokens(3, 24)
    prompts = tokens.input_ids[:, :12]
    expected = model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=12,
        min_new_tokens=12,
        pad_token_id=0,
        eos_token_id=319,  # which is never reached: it is forbidden until the end
    )[:, 12:]
    written = torch.tensor(continuations(model, tokens))
    assert written.shape == (3, 12)
    differs = (written != expected).any(dim=1)
    # An end of text that transformers forbids is the one way in which they may part.
    assert not differs.any() or (written[differs] == 319).any()


@pytest.mark.usefixtures("_float32")
def test_a_training_model_stays_one_and_few_prompts_of_a_moderate_length_are_read() -> None:
    model = tiny_model(tiny_config("llama")).train()
    written = continuations(model, some_tokens(20))
    assert model.training
    assert (len(written), len(written[0])) == (16, NEW_TOKENS)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2", "falcon_h1"])
@pytest.mark.usefixtures("_float32")
def test_a_text_ends_where_transformers_ends_it(model_type: str) -> None:
    model, tokens = tiny_model(tiny_config(model_type)), some_tokens(3, 256)
    written = continuations(model, tokens, [319])
    assert {len(own) for own in written} == {MOST_TOKENS}
    assert [own[:NEW_TOKENS] for own in written] == continuations(model, tokens)
    end = written[0][40]
    for own, prompt in zip(written, prompts(tokens), strict=True):
        expected = model.generate(
            input_ids=prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            do_sample=False,
            max_new_tokens=MOST_TOKENS,
            pad_token_id=0,
            eos_token_id=end,
        )[0, len(prompt) :]
        assert own[: len(until_end(own, [end])) + 1] == expected.tolist()


@pytest.mark.usefixtures("_float32")
def test_no_more_is_written_than_is_compared_where_every_text_has_ended() -> None:
    model, tokens = tiny_model(tiny_config("llama")), some_tokens(3, 256)
    assert continuations(model, tokens, range(320)) == continuations(model, tokens)


def test_a_text_is_as_long_as_what_stands_before_its_end() -> None:
    assert endings([[1, 2, 9, 4], [9, 2, 9, 4], [1, 2, 3, 4], [1, 2, 3, 8]], [8, 9]) == Endings(
        (2 + 0 + 4 + 3) / 4, 3 / 4
    )
    assert endings([[1, 2], [3, 4]], [9]) == Endings(2, 0)
    assert endings([[1, 2], [3, 4]], []) == Endings(None, None)


def test_the_ends_of_a_text_are_those_of_the_settings_of_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tiny_config("llama"))
    for larger in (False, True):
        monkeypatch.setattr(module, "is_larger_than_device", lambda folder, larger=larger: larger)
        for given, expected in ((7, [7]), ([9, 7], [7, 9]), (None, [])):
            model.generation_config.eos_token_id = given
            assert ends_of(model, tmp_path) == ([] if larger else expected)


def test_agreement_ends_where_the_first_token_differs() -> None:
    assert agreement([[1, 2, 3], [1, 9, 3], [9, 2, 3]], [[1, 2, 3]] * 3) == [3, 1, 0]
    assert agreement([[4] * 8], [[4] * 8]) == [8]


def test_prompts_are_beginnings_of_at_most_half_a_sequence() -> None:
    tokens = some_tokens(20)
    assert torch.equal(prompts(tokens), tokens.input_ids[:16, :48])
    assert prompts(some_tokens(2, 200)).shape == (2, 64)


def test_repetition_counts_runs_of_four_that_have_been_before() -> None:
    assert repetition([[1, 2, 3, 4, 5, 6, 7]]) == 0
    assert repetition([[1, 2, 3, 4, 1, 2, 3, 4]]) == pytest.approx(1 / 5)
    assert repetition([[7] * 8, [1, 2, 3, 4, 5, 6, 7, 8]]) == pytest.approx(4 / 10)
    assert repetition([[1, 2, 3]]) == 0
