"""The `config.json` of a model of which nothing else is needed, whether its family is known or not."""

from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig

from minitron_nas.errors import TeacherNotFoundError
from minitron_nas.models.hub import HUB_NAME, download_config
from minitron_nas.models.special_floats import plain_floats
from minitron_nas.storage.foreign import read_object
from minitron_nas.storage.machine import expanded


def config_alone(source: str) -> tuple[Path | str, dict[str, Any]]:
    """Return what a model's config is called, and its content.

    Args:
        source: A folder, a config file, `owner/name[@revision]`, of which the config is fetched and nothing else, or a
            model type of transformers, whose defaults are taken.

    Raises:
        TeacherNotFoundError: If it is none of these, or the hub does not deliver it.
        CheckpointError: If the file is no JSON object.
    """
    path = expanded(source)
    if path.exists():
        file = path / "config.json" if path.is_dir() else path
        return file, plain_floats(read_object(file))
    if HUB_NAME.fullmatch(source):
        return source, plain_floats(read_object(download_config(source) / "config.json"))
    if source in CONFIG_MAPPING:
        return source, AutoConfig.for_model(source).to_dict()
    raise TeacherNotFoundError(
        f"{source}: no such folder or file here, no hub name (owner/name), and no model type that transformers knows; "
        "give one of them"
    )
