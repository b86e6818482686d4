"""What lies beside the weights: what differs is told by name, what is only written otherwise is the same."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline.steps.check import Check
from minitron_nas.pipeline.steps.companions import Companions, checks_of_settings, checks_of_tokens
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.settings import TextSettings

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "llama", "llama")


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Callable[[str, Change], Companions]:
    """Change a file of a copy of the model, and read what lies beside the copy's weights."""

    def call(name: str, change: Change) -> Companions:
        file = shutil.copytree(folder, tmp_path / "copy") / name
        content = json.loads(file.read_text(encoding="utf-8"))
        change(content)
        file.write_text(json.dumps(content), encoding="utf-8")
        return Companions.of(open_checkpoint(tmp_path / "copy"))

    return call


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("The quick Fox jumps over the lazy dog.", encoding="utf-8")
    return file


def failing(checks: list[Check]) -> dict[str, str]:
    return {check.measure: check.told for check in checks if not check.passes}


@pytest.mark.parametrize(
    ("file", "change", "kind", "told"),
    [
        ("config.json", {"eos_token_id": 100}, "special_tokens", "eos_token_id of config.json is [2] and [100]"),
        (
            "generation_config.json",
            {"eos_token_id": [2, 7]},
            "special_tokens",
            "eos_token_id of generation is [2] and [2, 7]",
        ),
        ("generation_config.json", {"pad_token_id": 0}, "special_tokens", "pad_token_id of generation is [2] and [0]"),
        ("generation_config.json", {"temperature": 0.2}, "generation", "temperature is 1.0 and 0.2"),
        ("generation_config.json", {"do_sample": True}, "generation", "do_sample is False and True"),
        ("config.json", {"max_position_embeddings": 64}, "context", "max_position_embeddings is 256 and 64"),
        ("tokenizer_config.json", {"model_max_length": 64}, "context", None),
        ("tokenizer_config.json", {"padding_side": "left"}, "context", "padding_side is 'right' and 'left'"),
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}, "special_tokens", None),
    ],
)
def test_a_setting_that_differs_fails_by_name(
    changed: Callable[..., Companions], folder: Path, file: str, change: dict[str, Any], kind: str, told: str | None
) -> None:
    base, other = Companions.of(open_checkpoint(folder)), changed(file, lambda content: content.update(change))
    found = failing(list(checks_of_settings(base, other, 0)))
    assert kind in found
    assert next(iter(change)) in found[kind]
    assert told is None or told in found[kind]
    assert not failing(list(checks_of_settings(base, other, 9)))
    assert not failing(list(checks_of_settings(base, other, None)))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("generation_config.json", lambda content: content.clear()),
        ("generation_config.json", lambda content: content.update(temperature=1.0, transformers_version="9")),
        ("generation_config.json", lambda content: content.update(eos_token_id=[2])),
        ("config.json", lambda content: content.pop("bos_token_id")),
    ],
)
def test_what_only_is_written_otherwise_is_the_same(
    changed: Callable[..., Companions], folder: Path, file: str, change: Change
) -> None:
    base, other = Companions.of(open_checkpoint(folder)), changed(file, change)
    assert [check.told for check in checks_of_settings(base, other, 0)] == ["the same"] * 4


def lower(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def without_merges(content: dict[str, Any]) -> None:
    content["model"]["merges"] = []


def without_decoder(content: dict[str, Any]) -> None:
    content["decoder"] = None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lower, {"text_as_tokens": "2 of 2 texts differ, one from token 0 on: ['T', "}),
        (without_merges, {"text_as_tokens": "2 of 2 texts differ, one from token "}),
        (without_decoder, {"tokens_as_text": "2 of 2 texts differ, one from character 1 on: 'he quick"}),
    ],
)
def test_models_that_cut_or_write_the_same_text_otherwise_fail(
    changed: Callable[..., Companions], folder: Path, text: Path, change: Change, expected: dict[str, str]
) -> None:
    base, other = Companions.of(open_checkpoint(folder)), changed("tokenizer.json", change)
    found = failing(checks_of_tokens(base, other, text, TextSettings()))
    assert expected.keys() <= found.keys()
    for measure, told in expected.items():
        assert found[measure].startswith(told)


def test_an_id_of_the_text_that_has_no_row_fails(folder: Path, text: Path) -> None:
    base = Companions.of(open_checkpoint(folder))
    assert not failing(checks_of_tokens(base, replace(base, vocab_size=384), text, TextSettings()))
    found = failing(checks_of_tokens(base, replace(base, vocab_size=2), text, TextSettings()))
    assert found.keys() == {"vocabulary"}
    assert found["vocabulary"].endswith("ids that have no row, such as ['<|im_end|>']")
