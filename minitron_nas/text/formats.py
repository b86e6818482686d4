"""Kinds of files that hold text, by the end of their names."""

from pathlib import Path

PROSE = "text"
JSON = "json"
PARQUET = "parquet"
SAVED_FOLDER = "saved"
TABLES = frozenset((JSON, PARQUET, SAVED_FOLDER))

SAVED = ("state.json", "dataset_info.json")
"""What lies in every folder that `Dataset.save_to_disk` wrote."""

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

_KINDS = {
    ".txt": PROSE,
    ".md": PROSE,
    ".rst": PROSE,
    ".text": PROSE,
    ".parquet": PARQUET,
    ".jsonl": JSON,
    ".json": JSON,
    ".ndjson": JSON,
}

READABLE = f"{', '.join(_KINDS)} files, all but parquet also as {', '.join(COMPRESSIONS)}"
"""What can be read, in the words of an error."""


def kind_of(file: Path) -> str | None:
    """Return the kind of a file by its name, in capitals or not, compressed or not; None for others.

    Args:
        file: Or a folder, which is of a kind where `Dataset.save_to_disk` wrote it.
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes[-1:] and suffixes[-1] in COMPRESSIONS:
        kind = _KINDS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return None if kind == PARQUET else kind
    kind = _KINDS.get(suffixes[-1]) if suffixes else None
    if kind is None and file.is_dir() and all((file / name).is_file() for name in SAVED):
        return SAVED_FOLDER
    return kind


def compression_of(file: Path) -> str | None:
    """Return how a file is compressed, such as ".gz", by its name.

    Args:
        file: The file.
    """
    suffix = file.suffix.lower()
    return suffix if suffix in COMPRESSIONS else None
