"""Turning a GGUF file into a stock Hugging Face folder."""

import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from minitron_nas.errors import CheckpointError, MinitronNasError, TeacherNotFoundError
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.cache import build_once, cache_folder
from minitron_nas.models.live import write_stock_folder

_MAGIC = b"GGUF"
_CONVERSION = "v1"  # part of the cache key: raise it when the conversion writes other bytes
_HASH_DIGITS = 16
_PLAIN_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
_SINGLE_DIGIT_VOCABULARIES = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
"""Values of `tokenizer.ggml.pre` whose tokenizers split numbers into digits (llama.cpp, llama-vocab.cpp)."""
_ENDS = {"eos_token_id": "tokenizer.ggml.eos_token_id", "pad_token_id": "tokenizer.ggml.padding_token_id"}
"""What transformers before 5.18 overlooks: it takes the bos token for the one, and has no other."""
_NOT_STOCK = frozenset({"dtype", "quantization_config", "transformers_version"})
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, IndexError, RuntimeError, struct.error)


def convert_gguf(file: Path) -> Path:
    """Return the stock folder of a GGUF file, converting it the first time.

    Quantised weights are dequantised and stored as bfloat16; plain ones keep their type.

    Raises:
        TeacherNotFoundError: If there is no such file.
        CheckpointError: If it is not a GGUF file, is cut short, or transformers cannot read its kind.
        UnknownFamilyError: If no table describes the model in it.
    """
    if not file.is_file():
        raise TeacherNotFoundError(f"{file} does not exist; give the path of a .gguf file")
    with file.open("rb") as handle:
        if handle.read(len(_MAGIC)) != _MAGIC:
            raise CheckpointError(f"{file} is not a GGUF file; download it again")
        handle.seek(0)
        digest = hashlib.file_digest(handle, "sha256").hexdigest()[:_HASH_DIGITS]
    folder = cache_folder() / "gguf" / f"{file.stem}-{digest}-{_CONVERSION}"
    return build_once(folder, partial(_convert, file))


def _convert(file: Path, folder: Path) -> None:
    from gguf import GGUFReader  # deferred: few teachers are GGUF files

    with _reading(file):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        layout_of(config.model_type)
        reader = GGUFReader(file)
        loaded = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, quantization_config=_dequantised()
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    quantised = any(tensor.tensor_type.name not in _PLAIN_TYPES for tensor in reader.tensors)
    vocabulary = reader.get_field("tokenizer.ggml.pre")
    if vocabulary is not None and vocabulary.contents() in _SINGLE_DIGIT_VOCABULARIES:
        _split_digits(tokenizer)
    for name, key in _ENDS.items():
        end = reader.get_field(key)
        if end is not None:
            setattr(tokenizer, name, int(end.contents()))
    model = _plain_copy(loaded, torch.bfloat16 if quantised else loaded.dtype)
    write_stock_folder(model, tokenizer, folder)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except MinitronNasError:
        raise
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{file} cannot be read as a model ({error}); download it again, or give a safetensors folder of the model"
        ) from error


def _dequantised() -> Any:
    """Return what tells transformers to unpack all weights; before 5.17 it knows no other way, and no `GgufConfig`."""
    return transformers.GgufConfig(dequantize=True) if hasattr(transformers, "GgufConfig") else None


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Split numbers into digits; transformers knows other rules only."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _plain_copy(loaded: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Rebuild a model that came out of a GGUF file as one that never heard of it."""
    fields = json.loads(loaded.config.to_json_string())
    kept = {k: v for k, v in fields.items() if not k.startswith("_") and k not in _NOT_STOCK}
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**kept), dtype=dtype)
    weights = {name: tensor.to(dtype) for name, tensor in loaded.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model
