"""The YAML at the head of a card, the README of a model or dataset."""

from pathlib import Path

CARD = "README.md"
_MARK = "---"


def front_matter(folder: Path) -> str:
    """Return the YAML between the first two marks of a folder's card; "" where there is none that can be read.

    Args:
        folder: Of a model or dataset.
    """
    card = folder / CARD
    try:
        lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    except (OSError, UnicodeDecodeError):
        return ""
    if not lines or lines[0].strip() != _MARK or _MARK not in lines[1:]:
        return ""
    return "\n".join(lines[1 : lines.index(_MARK, 1)])
