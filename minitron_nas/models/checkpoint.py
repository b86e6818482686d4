"""Opening a stock Hugging Face folder: its shape, its family, and whether the two agree."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from minitron_nas.architecture.costs import count_parameters
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.families.wrappers import Tower
from minitron_nas.models.checks import (
    check_tensors,
    check_tokenizer,
    check_twins,
    check_values,
    fingerprint_tensors,
)
from minitron_nas.models.config import read_architecture, read_config
from minitron_nas.models.expected import ExpectedTensors
from minitron_nas.models.outline import Outline, require_positions
from minitron_nas.models.text_part import read_text_headers
from minitron_nas.models.tower import tower_in
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.weights import TensorHeader

_FINGERPRINT_DIGITS = 16
_COMPANIONS = {".json", ".jinja", ".model", ".txt", ".md"}
_TOKENIZER_FILES = ("*token*.json", "vocab*", "merges.txt", "*.model", "chat_template*")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A stock Hugging Face folder that has passed its family's check.

    Attributes:
        path: The folder.
        config: The content of its `config.json`.
        architecture: Its shape, with the defaults that transformers fills in.
        layout: The table of its family.
        headers: Where each tensor lies, by the table's names.
        fingerprint: 16 hexadecimal digits of `config.json`, of the tensors' names, types and shapes, and
            of the beginning, middle and end of each; a training step changes them.
        tower: What stands beside it where it is the text part of a wrapper.
    """

    path: Path
    config: dict[str, Any]
    architecture: Architecture
    layout: Layout
    headers: Mapping[str, TensorHeader]
    fingerprint: str
    tower: Tower | None = None

    @property
    def num_parameters(self) -> int:
        """Number of parameters, tied embeddings counted once."""
        return count_parameters(self.architecture, self.layout)

    def tokenizer_fingerprint(self) -> str:
        """Return 16 hexadecimal digits of the files that a tokenizer is made of."""
        digest = hashlib.sha256()
        found = {file for pattern in _TOKENIZER_FILES for file in self.path.glob(pattern) if file.is_file()}
        for file in sorted(found):
            content = file.read_bytes()
            digest.update(f"{file.name} {len(content)} ".encode() + content)
        return digest.hexdigest()[:_FINGERPRINT_DIGITS]

    def outline(self) -> Outline:
        """Return its shape, and how much its files take."""
        small = sum(
            file.stat().st_size for file in self.path.glob("*") if file.suffix in _COMPANIONS and file.is_file()
        )
        stored = sum(header.num_bytes for header in read_text_headers(self.path).values())
        return Outline(self.path, self.architecture, self.layout, stored, small, self.config, self.tower)

    def about(self, sequence_length: int, text_only: bool | None = None) -> Iterator[str]:
        """Yield what a user should know of how it is read.

        Args:
            sequence_length: Tokens of the sequences that it reads.
            text_only: Whether students of a text part are text models; None where none are made of it.
        """
        return self._as_said().about(sequence_length, text_only)

    def about_tower(self, text_only: bool | None) -> Iterator[str]:
        """Yield what becomes of what looks at pictures, where it is the text part of a wrapper.

        Args:
            text_only: Whether students of a text part are text models; None where none are made of it.
        """
        return self._as_said().about_tower(text_only)

    def _as_said(self) -> Outline:
        """Return what its config says of it."""
        return Outline.of_config(self.path, self.config, self.architecture, self.layout, self.tower)

    def require_length(self, sequence_length: int) -> None:
        """Refuse sequences that are longer than a table of learned positions.

        Raises:
            PlanError: With both lengths.
        """
        require_positions(self.path, self.architecture, sequence_length)

    def at(self, path: Path) -> Self:
        """Return the same checkpoint in another folder, to which its files were moved."""
        headers = {name: replace(header, file=path / header.file.name) for name, header in self.headers.items()}
        return replace(self, path=path, headers=headers)


def open_checkpoint(
    path: Path, read_values: bool = True, progress: Progress = silent, *, reads_text: bool = True
) -> Checkpoint:
    """Check a folder against its family's table, without building the model.

    Every tensor must be explained by the table and have the shape that the config asks for, every
    value must be finite, and the tokenizer must fit into the vocabulary.

    Args:
        path: A folder with `config.json`, safetensors weights and a tokenizer.
        read_values: Whether to read every tensor, a few megabytes at a time, in search of NaN and
            infinity; surgery looks for them itself.
        progress: Told the number of bytes read.
        reads_text: Whether the model is to read text, so that its tokenizer has to be there and fit.

    Raises:
        CheckpointError: If the folder is incomplete, is no causal language model in floating point,
            or disagrees with its family's table.
        UnknownFamilyError: If no table describes its model type.
        InvalidArchitectureError: If the config describes a shape that cannot exist.
    """
    config = read_config(path)
    architecture, layout = read_architecture(path, config)
    expected = ExpectedTensors.of(architecture, layout)
    headers = check_tensors(path, expected)
    if reads_text:
        check_tokenizer(path, architecture)
    check_twins(path, headers, expected)
    if read_values:
        check_values(path, headers, progress)
    content = (path / "config.json").read_bytes() + fingerprint_tensors(headers).encode()
    fingerprint = hashlib.sha256(content).hexdigest()[:_FINGERPRINT_DIGITS]
    return Checkpoint(path, config, architecture, layout, headers, fingerprint, tower_in(path))
