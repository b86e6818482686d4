"""Files that others wrote: what they really are, and JSON that may be damaged or made to do harm."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from minitron_nas.errors import CheckpointError


class _Kind(NamedTuple):
    """What files of some beginning are, in words that continue "FILE is"."""

    beginnings: tuple[bytes, ...]
    words: str


_KINDS = (
    _Kind((b"version https://git-lfs.github.com/spec/",), "a Git LFS pointer, which stands in for the file; run "
          "`git lfs pull` in the clone, or download the file itself"),
    _Kind((b"<!doctype html", b"<html", b"<head", b"<?xml"), "a web page; download the file itself, from the link that "
          "says raw or resolve, and log in first if the model is gated"),
    _Kind((b"entry not found", b"repository not found", b"invalid username or password", b"access to model",
           b"unauthorized", b"not found", b'{"error"'), "what a server says of a file that it does not give; "
          "download it again, and log in first if the model is gated"),
    _Kind((b"gguf",), "a GGUF file; give its own path"),
    _Kind((b"pk\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04"), "a file of torch.save; load the model in "
          "transformers and save it again with save_pretrained"),
    _Kind((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zxz", b"bzh", b"7z\xbc\xaf"), "compressed; unpack it"),
    _Kind((b"\x89hdf",), "an HDF5 file; load the model in transformers and save it again with save_pretrained"),
)  # fmt: skip
_BEGINNING_BYTES = 512
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MOST_JSON_BYTES = 64 << 20
_MOST_NESTED = 64
"""Far more than a model's config nests, and little enough to copy."""

_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.npz")
_SHOWN = 3


def other_kind(file: Path) -> str | None:
    """Return what a file is that is not what its name says, in words that continue "FILE is", or None.

    Args:
        file: Any path.
    """
    if file.is_symlink() and not file.exists():
        return "a link to a file that is gone; download it again"
    if not file.is_file():
        return None
    with open(file, "rb") as handle:
        beginning = handle.read(_BEGINNING_BYTES)
    if not beginning:
        return "empty; download it again"
    plain = beginning.removeprefix(_BYTE_ORDER_MARK).lstrip().lower()
    return next((kind.words for kind in _KINDS if plain.startswith(kind.beginnings)), None)


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object that others wrote.

    Raises:
        CheckpointError: If it cannot be read, is no JSON object, or nests deeper than anything could use.
    """
    try:
        if (size := file.stat().st_size) > _MOST_JSON_BYTES:
            raise CheckpointError(
                f"{file} holds {size:,} bytes, and at most {_MOST_JSON_BYTES:,} of JSON are read; copy it again"
            )
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    except RecursionError:
        raise _too_nested(file) from None
    except ValueError as error:
        kind = other_kind(file)
        raise CheckpointError(f"{file} is {kind}" if kind else f"{file} is not JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a JSON {type(content).__name__}, not an object; copy it again")
    if _is_too_nested(content):
        raise _too_nested(file)
    return content


def what_lies_instead(folder: Path) -> str | None:
    """Return what a folder holds where a model is looked for, in words that continue "FOLDER", or None.

    Args:
        folder: A folder without a `config.json` or without safetensors weights.
    """
    return next(_instead(folder), None)


def plain_name(name: object) -> bool:
    """Whether a value that others wrote is the name of something inside a folder, and leads nowhere else.

    Args:
        name: Anything.
    """
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and path.parts != ()


def _instead(folder: Path) -> Iterator[str]:
    if (folder / "adapter_config.json").is_file():
        yield (
            "holds an adapter (LoRA or another of PEFT) without its base model; merge the two with "
            "merge_and_unload() and save what comes out with save_pretrained"
        )
    gone = [file for file in folder.glob("*.safetensors") if file.is_symlink() and not file.exists()]
    if gone:
        yield f"holds links to files that are gone ({_names(gone)}); download the model again"
    if found := list(folder.glob("*.gguf")):
        yield f"holds GGUF files ({_names(found)}) and no model of transformers; give the path of one of them"
    if found := list(folder.glob("*.safetensors")):
        yield (
            f"holds {_names(found)}, but no config.json with model.safetensors or model.safetensors.index.json, which "
            "is what from_pretrained reads; load the model as its makers say and save it again with save_pretrained"
        )
    inner = [file.parent for file in folder.glob("*/config.json")]
    if inner and not (folder / "config.json").is_file():
        yield f"is no model itself, but holds folders that are ({_names(inner)}); give one of them"
    if found := [file for pattern in _OTHER_FORMATS for file in folder.glob(pattern)]:
        yield (
            f"holds no safetensors weights, but {_names(found)}; load the model in transformers and save it again with "
            "save_pretrained, which writes them"
        )


def _is_too_nested(content: object) -> bool:
    level: list[object] = [content]
    for _ in range(_MOST_NESTED):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return False
    return True


def _inside(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _too_nested(file: Path) -> CheckpointError:
    return CheckpointError(f"{file} nests deeper than {_MOST_NESTED} levels, which no model's file does; copy it again")


def _names(files: list[Path]) -> str:
    names, more = sorted(file.name for file in files), len(files) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
