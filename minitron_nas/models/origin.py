"""Whether a live model's weights are those of the folder that it says it was loaded from."""

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from minitron_nas.errors import CheckpointError
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.expected import ExpectedTensors
from minitron_nas.models.stock import DTYPES
from minitron_nas.models.text_part import read_text_headers, wrapper_in
from minitron_nas.storage.foreign import read_object
from minitron_nas.storage.weights import TensorHeader, float_rows

_UNLIKE = 0.1
"""Cosines nearer to 0 are those of weights that have nothing to do with each other; fine-tuning stays far above."""
_MOST_NUMBERS = 65_536
_FEWEST_NUMBERS = 1_024
"""Of two random vectors of so many numbers the cosine is below 0.1 in all but one case of a thousand."""
_SHOWN = 3


def check_origin(checkpoint: Checkpoint, origin: Path, prefix: str) -> None:
    """Refuse a live model whose weights transformers made up at random because it did not find them.

    transformers keeps no record of what it found. But a model says where it was loaded from: a matrix that this
    folder lacks, or that has nothing to do with the folder's, was made up. A model that says nothing, or names what
    is not here any more or is quantised, passes, and so does a matrix whose shape was changed since.

    Args:
        checkpoint: The model, saved.
        origin: The folder that it was loaded from.
        prefix: What the model's class puts in front of its inner model's names.

    Raises:
        CheckpointError: If there is such a matrix.
    """
    try:
        expected = ExpectedTensors.of(checkpoint.architecture, checkpoint.layout)
        wrapper, stored = wrapper_in(origin), expected.sliced(expected.named(read_text_headers(origin)))
        if read_object(origin / "config.json").get("quantization_config"):
            return  # its matrices are packed
    except CheckpointError:
        return  # no safetensors lie there
    made_up = list(_made_up(checkpoint, stored, expected, prefix))
    if not made_up:
        return
    held = f", a {wrapper.model_type} whose text part is read where the folder itself is given" if wrapper else ""
    shown = ", ".join([*made_up[:_SHOWN], *(["..."] if made_up[_SHOWN:] else [])])
    raise CheckpointError(
        f"{len(made_up)} matrices of the live model ({shown}) have nothing to do with what {origin} holds, which it "
        f"was loaded from{held}: transformers makes up at random what it does not find. Give the folder, or a model "
        "whose loading reported no missing keys; if these weights are meant, save the model with save_pretrained and "
        "give that folder"
    )


def _made_up(
    checkpoint: Checkpoint, stored: dict[str, TensorHeader], expected: ExpectedTensors, prefix: str
) -> Iterator[str]:
    for name, header in checkpoint.headers.items():
        if len(header.shape) < 2:
            continue
        found = stored.get(name) or stored.get(name.removeprefix(f"{prefix}."))
        if found is None and header.shape == checkpoint.headers[expected.embedding].shape:
            found = stored.get(expected.embedding)  # an output head that was untied from it
        if found is None or _unlike(header, found):
            yield name


def _unlike(header: TensorHeader, other: TensorHeader) -> bool:
    if header.shape[1:] != other.shape[1:] or other.dtype not in DTYPES:
        return False
    rows = min(header.shape[0], other.shape[0], max(1, _MOST_NUMBERS // max(1, prod(header.shape[1:]))))
    one, two = (np.asarray(float_rows(each, 0, rows), "f8").ravel() for each in (header, other))
    lengths = float(np.linalg.norm(one) * np.linalg.norm(two))
    return one.size >= _FEWEST_NUMBERS and lengths > 0 and float(one @ two) < _UNLIKE * lengths
