"""The tokenizer of a GGUF file, which splits text into words as its vocabulary was learned, or is refused by name."""

from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minitron_nas.errors import CheckpointError
from minitron_nas.models.gguf_file import GgufFile

_MODEL, _WORDS = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_BYTE_LEVEL = "gpt2"
"""The value of `tokenizer.ggml.model` whose tokens are bytes; of the others, files say nothing about words."""

_ENDS = {"eos_token_id": "tokenizer.ggml.eos_token_id", "pad_token_id": "tokenizer.ggml.padding_token_id"}
"""What transformers before 5.18 overlooks: it takes the bos token for the one, and has no other."""

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_WITH_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_THREE_DIGITS = rf"{_SHORT}|{_HEAD}\p{{L}}+|\p{{N}}{{1,3}}{_REST}"
_ONE_DIGIT = rf"{_SHORT}|{_HEAD}\p{{L}}+|\p{{N}}{_REST}"
_BY_CASE = rf"{_HEAD}{_UPPER}*{_LOWER}+{{end}}|{_HEAD}{_UPPER}+{_LOWER}*{{end}}|\p{{N}}{{digits}}{_REST_WITH_SLASH}"
_CASE_ONE_DIGIT = _BY_CASE.replace("{end}", "").replace("{digits}", "")
_CASE_THREE_DIGITS = _BY_CASE.replace("{end}", f"{_SHORT}?").replace("{digits}", "{1,3}")
_WITH_MARKS = (
    rf"{_SHORT}|{_HEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = (
    "a.x-4.0", "exaone4", "gigachat", "gpt-2", "granite-docling", "jais", "mellum", "mpt", "olmo", "phi-2", "trillion",
)  # fmt: skip
_DIGITS = ("codeshell", "command-r", "exaone", "mellum2", "minerva-7b", "refact", "smollm", "starcoder")
_SPLITS: Mapping[str, tuple[str, ...]] = {
    _THREE_DIGITS: (
        "chatglm-bpe", "dbrx", "falcon-h1", "falcon3", "glm4", "lfm2", "llama-bpe", "llama-v3", "llama3", "midm-2.0",
        "pixtral", "smaug-bpe",
    ),
    _ONE_DIGIT: (
        "deepseek-r1-qwen", "f2llmv2", "grok-2", "hunyuan", "kormo", "megrez", "qwen2", "solar-open", "stablelm2",
    ),
    _WITH_MARKS: ("qwen35",),
    _CASE_ONE_DIGIT: ("tekken",),
    _CASE_THREE_DIGITS: ("gpt-4o", "kanana2", "llama4", "minimax-m2", "talkie"),
}  # fmt: skip
_REGEXES = {name: regex for regex, names in _SPLITS.items() for name in names}
KNOWN_WORDS = tuple(sorted((*_GPT2, *_DIGITS, *_REGEXES)))
"""Values of `tokenizer.ggml.pre` that are read.

Source: llama.cpp, src/llama-vocab.cpp, as far as one regular expression, or digits and GPT-2's, say it all.
"""


def tokenizer_of(file: GgufFile) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a file; transformers would give GPT-2's words to one whose words it does not know.

    Raises:
        CheckpointError: If the file says nothing, or something that is not read, about how text falls into words.
    """
    words = _words_of(file)
    tokenizer: Any = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
    if words is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = words
    for name, key in _ENDS.items():
        if key in file.keys:
            setattr(tokenizer, name, int(file.keys[key]))
    return tokenizer  # type: ignore[no-any-return]


def _words_of(file: GgufFile) -> pre_tokenizers.PreTokenizer | None:
    if file.keys.get(_MODEL) != _BYTE_LEVEL:
        return None
    gpt2s_own = "gpt-2" if file.keys.get("general.architecture") == "gpt2" else None
    name = file.keys.get(_WORDS, gpt2s_own)
    if name not in KNOWN_WORDS:
        said = f"says {_WORDS}={name!r}" if name is not None else f"has no key {_WORDS}"
        raise CheckpointError(
            f"{file.path} {said}, so that how its tokenizer splits text into words is not known; known: "
            f"{', '.join(KNOWN_WORDS)}; give a safetensors folder of the model, or convert it again with a newer "
            "llama.cpp"
        )
    if name in _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _DIGITS:
        first: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(_REGEXES[name]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
