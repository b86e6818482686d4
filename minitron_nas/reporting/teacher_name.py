"""What a teacher is called: its source is for machines, and may be a path or carry a hash."""

import re
from pathlib import Path

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_SUFFIXES = (".gguf", ".safetensors", ".bin")


def hub_name(source: str | None) -> str | None:
    """Return a teacher's source if it is a name on the Hugging Face hub, else None.

    A hub name is `owner/model`, and a revision after `@` is left out; a path that exists, that
    starts with a dot or that names a file is none.
    """
    name = (source or "").partition("@")[0]
    if not _HUB_NAME.fullmatch(name) or name.endswith(_FILE_SUFFIXES) or Path(name).exists():
        return None
    return name


def display_name(source: str | None) -> str:
    """Return what people call a teacher: its hub name, its package or its folder's last part."""
    if not source:
        return "the teacher"
    if source.startswith("pypi:"):
        return source.removeprefix("pypi:").partition("#")[0].replace("==", " ")
    return hub_name(source) or Path(source).name or source
