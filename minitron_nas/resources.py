"""Where the resource folders are: `search_spaces/`, `runners/` and `reports/`.

In a checkout and in a wheel alike they are the package data `minitron_nas/_resources/<folder>`
(setuptools maps them there); nothing else in the code knows that.
"""

from importlib.resources import files
from pathlib import Path

from minitron_nas.errors import MinitronNasError


def resource(folder: str, name: str) -> Path:
    """Return the path of one shipped file, e.g. `resource("reports", "report.html.j2")`.

    Raises:
        MinitronNasError: If the installation lacks the file.
    """
    path = _folder(folder) / name
    if not path.is_file():
        raise MinitronNasError(f"the installation lacks {folder}/{name}; reinstall minitron-nas")
    return path


def resource_names(folder: str, suffix: str) -> list[str]:
    """Return the sorted names, without suffix, of a resource folder's files."""
    return sorted(path.name.removesuffix(suffix) for path in _folder(folder).glob(f"*{suffix}"))


def _folder(name: str) -> Path:
    installed = Path(str(files("minitron_nas"))) / "_resources" / name
    if installed.is_dir():
        return installed
    return Path(__file__).resolve().parent.parent / name
