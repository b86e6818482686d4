"""What the card of a hub dataset, its README, says of its splits."""

import glob
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from minitron_nas.errors import DataError
from minitron_nas.storage.front_matter import front_matter


def files_of_card(folder: Path, config: str | None) -> dict[Path, str]:
    """Return the split of each file that a clone's card assigns to one; none where there is no such card.

    Args:
        folder: The clone.
        config: The configuration that is wanted; needed where the card has several and no default.

    Raises:
        DataError: If the card knows no such configuration, or several and none was chosen.
    """
    configs = {str(each.get("config_name", "default")): each for each in _configs(folder)}
    if not configs:
        return {}
    chosen = _chosen(configs, config, folder)
    within = str(chosen.get("data_dir", "."))
    splits: dict[Path, str] = {}
    for split, pattern in _patterns(chosen.get("data_files")):
        for match in glob.glob(pattern, root_dir=folder / within, recursive=True):
            splits[folder / within / match] = split
    return splits


def _configs(folder: Path) -> list[dict[str, Any]]:
    try:
        about = yaml.safe_load(front_matter(folder))
    except yaml.YAMLError:
        return []
    found = about.get("configs") if isinstance(about, Mapping) else None
    return (
        [each for each in found if isinstance(each, dict) and "data_files" in each] if isinstance(found, list) else []
    )


def _chosen(configs: Mapping[str, dict[str, Any]], config: str | None, folder: Path) -> dict[str, Any]:
    defaults = [name for name, each in configs.items() if each.get("default")]
    name = config or next(
        iter(defaults), "default" if "default" in configs or len(configs) > 1 else next(iter(configs))
    )
    if name not in configs:
        raise DataError(
            f"{folder} has the configurations {', '.join(configs)}{f', and none is {config!r}' if config else ''}; "
            "choose one with --set text.config=NAME, or in a blend with the source's own config=NAME"
        )
    return configs[name]


def _patterns(data_files: object) -> Iterator[tuple[str, str]]:
    """Yield split and pattern, in whatever form a card writes them."""
    if isinstance(data_files, str):
        yield "train", data_files
    elif isinstance(data_files, Mapping):
        for split, path in data_files.items():
            yield from ((str(split), str(each)) for each in (path if isinstance(path, list) else [path]))
    elif isinstance(data_files, list):
        for each in data_files:
            if isinstance(each, Mapping) and "path" in each:
                yield from _patterns({each.get("split", "train"): each["path"]})
            else:
                yield "train", str(each)
