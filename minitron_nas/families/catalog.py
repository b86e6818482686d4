"""Which families exist: the tables of this package, looked up by `model_type`."""

from collections.abc import Mapping
from typing import Any

from minitron_nas.architecture.costs import count_parameters as count_parameters_of_shape
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import UnknownFamilyError
from minitron_nas.families import llama, mistral, nemotron, qwen2

LAYOUTS: dict[str, Layout] = {module.LAYOUT.model_type: module.LAYOUT for module in (llama, mistral, nemotron, qwen2)}


def layout_of(model_type: str) -> Layout:
    """Return the table of a model family.

    Raises:
        UnknownFamilyError: If no table describes it.
    """
    try:
        return LAYOUTS[model_type]
    except KeyError:
        raise UnknownFamilyError(
            f"model type {model_type!r} is no known family; known: {', '.join(sorted(LAYOUTS))}; to add one, "
            "write a table like minitron_nas/families/llama.py and list it in catalog.py beside it"
        ) from None


def count_parameters(config: Mapping[str, Any] | Architecture | Any) -> int:
    """Count the parameters of a model from its config alone, tied embeddings once.

    Args:
        config: An `Architecture`, the content of a `config.json`, or a transformers config object.

    Raises:
        UnknownFamilyError: If the model type has no table.
    """
    if not isinstance(config, Architecture):
        content = config if isinstance(config, Mapping) else config.to_dict()
        layout_of(content.get("model_type", "unknown"))
        config = Architecture.from_config(content)
    return count_parameters_of_shape(config, layout_of(config.model_type))
