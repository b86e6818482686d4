"""What a checkpoint must satisfy: its tensors, their values and its tokenizer."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import CheckpointError
from minitron_nas.models.expected import ExpectedTensors
from minitron_nas.models.stock import Bits
from minitron_nas.models.text_part import read_text_headers
from minitron_nas.progress import Progress
from minitron_nas.storage.weights import (
    TensorHeader,
    float_rows,
    in_threads,
    read_rows,
    row_blocks,
    sample_bytes,
)

_EXPONENTS = {"F64": 0x7FF0 << 48, "F32": 0x7F80 << 16, "F16": 0x7C00, "BF16": 0x7F80}
"""The exponent bits of each accepted type; all of them are set in NaN and infinity only."""

_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "a distributed wrapper (DataParallel, DDP, DeepSpeed)",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Fabric",
}
"""Parts that wrappers of a model put into its tensors' names."""

_SHOWN_FAULTS = 3
_PROBE_TEXT = "Hello, world 42"


def check_tensors(path: Path, expected: ExpectedTensors) -> dict[str, TensorHeader]:
    """Compare the safetensors headers with the family's table, and return one for each tensor of the table, by name.

    Args:
        path: The folder.
        expected: What it is to hold.

    Raises:
        CheckpointError: If a tensor is missing, is not explained by the table, has another shape than
            the config asks for, or is not stored as floating point.
    """
    found, known = expected.named(read_text_headers(path)), expected.known
    faults = [
        f"tensor {name!r} of shape {shape} is missing" for name, shape in expected.required.items() if name not in found
    ]
    faults += [
        f"tensor {name!r} of shape {header.shape} is not in the table of family {expected.layout.model_type!r}"
        for name, header in found.items()
        if name not in known
    ]
    faults += _header_faults({name: h for name, h in found.items() if name in known}, known)
    if faults:
        raise CheckpointError(
            _wrapped(path, found, expected) or f"{path} does not match its config.json: {_first(faults)}"
        )
    return expected.sliced(found)


def check_twins(path: Path, headers: Mapping[str, TensorHeader], expected: ExpectedTensors) -> None:
    """Refuse a model whose config ties the output to the embedding although it carries another output.

    Args:
        path: The folder, for messages.
        headers: What `check_tensors` returned.
        expected: What the folder is to hold.

    Raises:
        CheckpointError: If the two tensors differ; transformers would not tie them.
    """
    for name in expected.twins:
        if name in headers and _differ(headers[name], headers[expected.embedding]):
            raise CheckpointError(
                f"{path}: config.json ties {name!r} to the embedding, but the two tensors differ; set "
                "tie_word_embeddings to false in config.json"
            )


def check_values(path: Path, headers: Mapping[str, TensorHeader], progress: Progress) -> None:
    """Read every tensor once, a block of rows at a time.

    Args:
        path: The folder, for messages.
        headers: What `check_tensors` returned.
        progress: Told the number of bytes read.

    Raises:
        CheckpointError: If a tensor holds NaN or infinity.
    """
    blocks = [(name, header, rows) for name, header in headers.items() for rows in row_blocks(header)]
    total, done = sum(header.num_bytes for header in headers.values()), 0

    def read(block: tuple[str, TensorHeader, tuple[int, int]]) -> bool:
        _, header, rows = block
        return all_finite(read_rows(header, *rows), header.dtype)

    for (name, header, rows), finite in zip(blocks, in_threads(read, blocks), strict=True):
        if not finite:
            raise not_finite(path, name)
        done += (rows[1] - rows[0]) * header.row_bytes
        progress(done, total)


def all_finite(bits: Bits, dtype: str) -> bool:
    """Whether a block of stored numbers holds neither NaN nor infinity; numbers of other types never do.

    Args:
        bits: Any shape.
        dtype: Their type, as safetensors names it.
    """
    if dtype not in _EXPONENTS:
        return True
    exponent = bits.dtype.type(_EXPONENTS[dtype])
    return not bool(np.any(bits & exponent == exponent))


def not_finite(path: Path, name: str) -> CheckpointError:
    """Return the error of a tensor that holds NaN or infinity.

    Args:
        path: The folder.
        name: The tensor.
    """
    return CheckpointError(
        f"{path}: tensor {name!r} holds NaN or infinity; copy it again, or load the model in a wider type and save it "
        "again"
    )


def fingerprint_tensors(headers: Mapping[str, TensorHeader]) -> str:
    """Hash names, types, shapes and, of each tensor, its beginning, middle and end, however spread over files.

    Reads at most 192 KiB of a tensor, so that a checkpoint of any size is told apart at once from
    one that was trained a step further.
    """
    digest = hashlib.sha256()
    for name, header in sorted(headers.items()):
        digest.update(f"{name} {header.dtype} {header.shape}".encode())
        for piece in sample_bytes(header):
            digest.update(piece)
    return digest.hexdigest()


def check_tokenizer(path: Path, architecture: Architecture) -> None:
    """Load the tokenizer and compare its ids with the vocabulary, which may be padded.

    Special tokens that were added to the tokenizer may lie beyond it, as Gemma 3's image token does: text for a
    causal language model holds none of them, or is refused when it is packed.

    Args:
        path: The folder.
        architecture: Says how many entries the vocabulary has.

    Raises:
        CheckpointError: If there is no tokenizer or it has ordinary ids that the embedding lacks.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        usable = bool(tokenizer(_PROBE_TEXT)["input_ids"])
    except Exception as error:  # the tokenizers library raises no other class
        raise CheckpointError(
            f"{path} has no tokenizer that transformers can load: {' '.join(str(error).split())}; copy the model's own "
            "tokenizer files again, or save them with the installed versions of transformers and tokenizers"
        ) from error
    if not usable:
        raise CheckpointError(
            f"{path} has no tokenizer; save the model's own into it with tokenizer.save_pretrained(folder)"
        )
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    num_ids = max(set(tokenizer.get_vocab().values()) - special, default=-1) + 1
    if num_ids > architecture.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {num_ids} ordinary ids, but vocab_size={architecture.vocab_size}; use the "
            "model's own tokenizer, or call model.resize_token_embeddings and save both again"
        )


def _differ(one: TensorHeader, other: TensorHeader) -> bool:
    """Whether two tensors of one shape hold different values, in whatever types."""
    read = read_rows if one.dtype == other.dtype else float_rows
    return any(not np.array_equal(read(one, *rows), read(other, *rows)) for rows in row_blocks(one))


def _wrapped(path: Path, found: Mapping[str, TensorHeader], expected: ExpectedTensors) -> str | None:
    """Say of names that would be right without what a wrapper adds to them, or with what an inner model lacks."""
    bare = {".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in found}
    added = sorted({part for name in found for part in name.split(".")} & _WRAPPERS.keys())
    if added and bare >= expected.required.keys():
        return (
            f"{path} holds tensors under the names that {' and '.join(_WRAPPERS[part] for part in added)} gives them "
            f"(with {', '.join(f'{part}.' for part in added)}), which transformers does not find; save the inner model "
            "with save_pretrained"
        )
    if any(part.startswith("lora_") for name in found for part in name.split(".")):
        return (
            f"{path} holds tensors of an adapter (LoRA); merge it with merge_and_unload() and save what comes out with "
            "save_pretrained"
        )
    return None


def _header_faults(found: Mapping[str, TensorHeader], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, header in found.items():
        if header.shape != shapes[name]:
            yield f"tensor {name!r} has shape {header.shape}, its config asks for {shapes[name]}"
        if header.dtype not in _EXPONENTS:
            yield f"tensor {name!r} is stored as {header.dtype}, not as floating point; give the unquantised model"


def _first(faults: Sequence[str]) -> str:
    shown = "; ".join(faults[:_SHOWN_FAULTS])
    more = len(faults) - _SHOWN_FAULTS
    return f"{shown}; and {more} more" if more > 0 else shown
