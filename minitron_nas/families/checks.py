"""What a checkpoint must satisfy: its tensors, their values and its tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

from minitron_nas.architecture.layout import HIDDEN, VOCAB, Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import CheckpointError
from minitron_nas.progress import Progress
from minitron_nas.storage.weights import TensorHeader, open_weights, read_headers

_FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
_SHOWN_FAULTS = 3
_PROBE_TEXT = "Hello, world 42"


def check_tensors(path: Path, architecture: Architecture, layout: Layout) -> None:
    """Compare the safetensors headers with the family's table.

    Raises:
        CheckpointError: If a tensor is missing, is not explained by the table, has another shape than
            the config asks for, or is not stored as floating point.
    """
    expected = _expected_shapes(architecture, layout)
    found = {name: h for name, h in read_headers(path).items() if not name.endswith(layout.ignored)}
    faults = [f"tensor {name!r} of shape {shape} is missing" for name, shape in expected.items() if name not in found]
    untied = _untied_twins(architecture, layout)
    known = expected | untied
    faults += [
        f"tensor {name!r} of shape {header.shape} is not in the table of family {layout.model_type!r}"
        for name, header in found.items()
        if name not in known
    ]
    faults += _header_faults({name: h for name, h in found.items() if name in known}, known)
    if faults:
        raise CheckpointError(f"{path} does not match its config.json: {_first(faults)}")


def check_tensor_values(path: Path, architecture: Architecture, layout: Layout, progress: Progress) -> None:
    """Read every tensor once, one at a time.

    Raises:
        CheckpointError: If a tensor holds NaN or infinity, or a model whose config ties the output
            to the embedding carries an output that differs (transformers would not tie it).
    """
    untied = _untied_twins(architecture, layout)
    with open_weights(path) as weights:
        names = weights.names()
        for done, name in enumerate(names):
            progress(done, len(names))
            values = weights.tensor(name)
            if not torch.isfinite(values).all():
                raise CheckpointError(
                    f"{path}: tensor {name!r} holds NaN or infinity; copy it again, or load the model "
                    "in a wider type and save it again"
                )
            if name in untied and not torch.equal(values, weights.tensor(_embedding(architecture, layout))):
                raise CheckpointError(
                    f"{path}: config.json ties {name!r} to the embedding, but the two tensors differ; set "
                    "tie_word_embeddings to false in config.json"
                )
        progress(len(names), len(names))


def check_tokenizer(path: Path, architecture: Architecture) -> None:
    """Load the tokenizer and compare its ids with the vocabulary, which may be padded.

    Raises:
        CheckpointError: If there is no tokenizer or it has ids that the embedding lacks.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        usable = bool(tokenizer(_PROBE_TEXT)["input_ids"])
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        raise CheckpointError(f"{path} has no tokenizer that transformers can load: {error}") from error
    if not usable:
        raise CheckpointError(
            f"{path} has no tokenizer; save the model's own into it with tokenizer.save_pretrained(folder)"
        )
    num_ids = max(tokenizer.get_vocab().values()) + 1
    if num_ids > architecture.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {num_ids} ids, but vocab_size={architecture.vocab_size}; use the "
            "model's own tokenizer, or call model.resize_token_embeddings and save both again"
        )


def _expected_shapes(architecture: Architecture, layout: Layout) -> dict[str, tuple[int, ...]]:
    return {name: row.shape(architecture) for name, row, _ in layout.tensors(architecture)}


def _untied_twins(architecture: Architecture, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Tensors that only an untied model needs; a tied one may carry them as copies of the embedding."""
    untied = _expected_shapes(replace(architecture, tie_word_embeddings=False), layout)
    tied = _expected_shapes(architecture, layout)
    return {name: shape for name, shape in untied.items() if name not in tied}


def _embedding(architecture: Architecture, layout: Layout) -> str:
    return next(name for name, row, _ in layout.tensors(architecture) if row.dims == (VOCAB, HIDDEN))


def _header_faults(found: Mapping[str, TensorHeader], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    faults = [
        f"tensor {name!r} has shape {header.shape}, its config asks for {shapes[name]}"
        for name, header in found.items()
        if header.shape != shapes[name]
    ]
    return faults + [
        f"tensor {name!r} is stored as {header.dtype}, not as floating point; give the unquantised model"
        for name, header in found.items()
        if header.dtype not in _FLOAT_DTYPES
    ]


def _first(faults: Sequence[str]) -> str:
    shown = "; ".join(faults[:_SHOWN_FAULTS])
    more = len(faults) - _SHOWN_FAULTS
    return f"{shown}; and {more} more" if more > 0 else shown
