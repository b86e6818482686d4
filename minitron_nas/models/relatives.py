"""What a model of an unknown type is nearest to, by its name and by the keys of its config."""

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from minitron_nas.architecture.layout import Layout
from minitron_nas.families.catalog import layout_of, layouts
from minitron_nas.families.wrappers import WRAPPERS
from minitron_nas.models.quiet import quiet_transformers

_TEXT_PARTS = ("text_config", "llm_config", "language_config")
_ALIKE = 0.7
"""Names that share less say nothing."""


def known_layout(config: Mapping[str, Any], told: str = "") -> Layout:
    """Return the table of a config's family.

    Args:
        config: The content of a `config.json`.
        told: What the config is one of, if not of a whole model.

    Raises:
        UnknownFamilyError: If there is none; names its nearest relative, and its text part if it has one.
    """
    model_type = str(config.get("model_type", "(none)"))
    if model_type in layouts():
        return layouts()[model_type]
    return layout_of(model_type, f"{told and f'this is {told}; '}{_about(config)}")


def nearest_family(config: Mapping[str, Any]) -> tuple[str, int, int]:
    """Return the known family whose name and config are most like those of a config.

    Args:
        config: The content of a `config.json`.

    Returns:
        Its model type, how many of the config's own keys that family has too, and how many there are.
    """
    name, general = _plain(config.get("model_type", "")), PreTrainedConfig().to_dict().keys()
    own = config.keys() - general

    def likeness(family: str) -> float:
        keys = _keys(family) - general
        alike = SequenceMatcher(None, name, _plain(family)).ratio()
        return len(own & keys) / max(1, len(own | keys)) + (alike if alike >= _ALIKE else 0.0)

    with quiet_transformers():
        nearest = max(layouts(), key=likeness)
    return nearest, len(own & _keys(nearest)), len(own)


def _about(config: Mapping[str, Any]) -> str:
    part = next((config[key] for key in _TEXT_PARTS if isinstance(config.get(key), dict)), None)
    if part is None:
        return _relative(config)
    text_type = str(part.get("model_type", "(none)"))
    if text_type in layouts():
        return (
            f"its text part is a {text_type!r}, which is known, but how its tensors are called inside is not; of these "
            f"the text part is taken: {', '.join(WRAPPERS)}"
        )
    return f"its text part, {text_type!r}, is none either; {_relative(part)}"


def _relative(config: Mapping[str, Any]) -> str:
    family, shared, total = nearest_family(config)
    return f"nearest to it is {family!r}, which has {shared} of the {total} keys that its config has of its own"


def _keys(family: str) -> set[str]:
    try:
        return set(AutoConfig.for_model(family).to_dict())
    except ValueError:  # a family of another package, whose config is not registered
        return set()


def _plain(model_type: object) -> str:
    return str(model_type).removesuffix("_text")
