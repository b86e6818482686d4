from pathlib import Path

import pytest
from tokenizers import Regex, pre_tokenizers

from minitron_nas.models.gguf_file import GgufFile
from minitron_nas.models.gguf_tokenizer import KNOWN_WORDS, _words_of

try:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as THEIRS
except ImportError:  # transformers before 5.18
    THEIRS = {}


def words(pre: str, text: str) -> list[str]:
    keys = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre}
    splitter = _words_of(GgufFile(Path("tiny.gguf"), keys, {}))
    assert splitter is not None
    return [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in splitter.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["She", "'ll", " payMe", " 12345", "/", "\n"]),
        ("smollm", ["She", "'ll", " payMe", " ", "1", "2", "3", "4", "5", "/", "\n"]),
        ("llama-bpe", ["She", "'ll", " payMe", " ", "123", "45", "/\n"]),
        ("qwen2", ["She", "'ll", " payMe", " ", "1", "2", "3", "4", "5", "/\n"]),
        ("qwen35", ["She", "'ll", " payMe", " ", "1", "2", "3", "4", "5", "/\n"]),
        ("tekken", ["She", "'ll", " pay", "Me", " ", "1", "2", "3", "4", "5", "/\n"]),
        ("gpt-4o", ["She'll", " pay", "Me", " ", "123", "45", "/\n"]),
    ],
)
def test_text_falls_into_the_words_of_the_vocabulary(pre: str, pieces: list[str]) -> None:
    assert words(pre, "She'll payMe 12345/\n") == pieces


TEXT = "Its HTTPServer's 2024 tests\tété Ünïté 3.14159…\r\n\n  it'S क्षि 日本語 £5/\n x"


@pytest.mark.parametrize("pre", KNOWN_WORDS)
def test_words_are_the_text(pre: str) -> None:
    assert len("".join(words(pre, TEXT))) == len("".join(words("gpt-2", TEXT)))


@pytest.mark.skipif(not THEIRS, reason="transformers before 5.18 has no words of its own")
@pytest.mark.parametrize("pre", sorted(THEIRS.keys() & KNOWN_WORDS))
def test_words_are_those_of_transformers_where_it_knows_them(pre: str) -> None:
    split = pre_tokenizers.Split(Regex(THEIRS[pre]), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs = pre_tokenizers.Sequence([split, byte_level]).pre_tokenize_str(TEXT)
    assert words(pre, TEXT) == [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in theirs]


def test_tokenizers_without_bytes_are_left_as_transformers_makes_them() -> None:
    keys = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
    assert _words_of(GgufFile(Path("tiny.gguf"), keys, {})) is None
