"""Opening a stock Hugging Face folder: its shape, its family, and whether the two agree."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_nas.architecture.costs import count_parameters
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.families.checks import check_tensor_values, check_tensors, check_tokenizer
from minitron_nas.families.config import read_architecture, read_config
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.weights import weight_files

_FINGERPRINT_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A stock Hugging Face folder that has passed its family's check.

    Attributes:
        path: The folder.
        config: The content of its `config.json`.
        architecture: Its shape, with the defaults that transformers fills in.
        layout: The table of its family.
        fingerprint: 16 hexadecimal digits; any change of `config.json` or of a weight changes them.
    """

    path: Path
    config: dict[str, Any]
    architecture: Architecture
    layout: Layout
    fingerprint: str

    @property
    def num_parameters(self) -> int:
        """Number of parameters, tied embeddings counted once."""
        return count_parameters(self.architecture, self.layout)


def open_checkpoint(path: Path, check_values: bool = True, progress: Progress = silent) -> Checkpoint:
    """Check a folder against its family's table, without building the model.

    Every tensor must be explained by the table and have the shape that the config asks for; the
    tokenizer must fit into the vocabulary.

    Args:
        path: A folder with `config.json`, safetensors weights and a tokenizer.
        check_values: Whether to read every tensor once and look for NaN and infinity.
        progress: Told the number of tensors read.

    Raises:
        CheckpointError: If the folder is incomplete, is no causal language model in floating point,
            or disagrees with its family's table.
        UnknownFamilyError: If no table describes its model type.
        InvalidArchitectureError: If the config describes a shape that cannot exist.
    """
    config = read_config(path)
    architecture, layout = read_architecture(path, config)
    check_tensors(path, architecture, layout)
    check_tokenizer(path, architecture)
    if check_values:
        check_tensor_values(path, architecture, layout, progress)
    return Checkpoint(path, config, architecture, layout, _fingerprint(path))


def _fingerprint(path: Path) -> str:
    """Hash `config.json` and the weight files, in a fixed order and without the folder's name."""
    total = hashlib.sha256()
    for file in (path / "config.json", *weight_files(path)):
        with file.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()[:_FINGERPRINT_DIGITS]
