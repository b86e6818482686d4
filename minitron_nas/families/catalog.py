"""Which families exist: the tables of this package and those of others, looked up by `model_type`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.costs import count_parameters as count_parameters_of_shape
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import UnknownFamilyError
from minitron_nas.families import (
    arcee,
    cohere,
    cohere2,
    cwm,
    ernie4_5,
    exaone4,
    gemma,
    gemma2,
    gemma3_text,
    glm,
    glm4,
    gpt2,
    gpt_neox,
    granite,
    granite_swa,
    helium,
    hunyuan_v1_dense,
    internlm3,
    iquestcoder,
    llama,
    ministral,
    ministral3,
    mistral,
    mixtral,
    nemotron,
    olmo2,
    olmo3,
    olmoe,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
    vaultgemma,
)

ENTRY_POINT_GROUP = "minitron_nas.families"
"""Entry points of this group name a `Layout` in another package."""

_MODULES = (
    arcee, cohere, cohere2, cwm, ernie4_5, exaone4, gemma, gemma2, gemma3_text, glm, glm4, gpt2, gpt_neox, granite,
    granite_swa, helium, hunyuan_v1_dense, internlm3, iquestcoder, llama, ministral, ministral3, mistral, mixtral,
    nemotron, olmo2, olmo3, olmoe, phi, phi3, qwen2, qwen3, qwen3_moe, seed_oss, smollm3, stablelm, starcoder2,
    vaultgemma,
)  # fmt: skip


@cache
def layouts() -> dict[str, Layout]:
    """Return every known table by model type; one of another package replaces ours of the same type.

    Raises:
        UnknownFamilyError: If an entry point names something that is no `Layout`.
    """
    known = {module.LAYOUT.model_type: module.LAYOUT for module in _MODULES}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        layout = entry.load()
        if not isinstance(layout, Layout):
            raise UnknownFamilyError(
                f"the entry point {entry.name!r} of group {ENTRY_POINT_GROUP!r} names {entry.value}, which is a "
                f"{type(layout).__name__}; it must be a minitron_nas.architecture.layout.Layout"
            )
        known[layout.model_type] = layout
    return dict(sorted(known.items()))


def layout_of(model_type: str) -> Layout:
    """Return the table of a model family.

    Args:
        model_type: As `config.json` names it.

    Raises:
        UnknownFamilyError: If no table describes it.
    """
    try:
        return layouts()[model_type]
    except KeyError:
        raise UnknownFamilyError(
            f"model type {model_type!r} is no known family; known: {', '.join(layouts())}; "
            "minitron_nas/families/README.md tells how to add one"
        ) from None


@contextmanager
def with_layout(layout: Layout) -> Iterator[None]:
    """Let a table stand for its model type, known or not, for the duration of the block.

    Args:
        layout: The table, of a family that is being tried.
    """
    known = layouts()
    before = dict(known)
    known[layout.model_type] = layout
    try:
        yield
    finally:
        known.clear()
        known.update(before)


def count_parameters(config: Mapping[str, Any] | Architecture | Any) -> int:
    """Count the parameters of a model from its config alone, tied embeddings once, all experts.

    Args:
        config: An `Architecture`, the content of a `config.json`, or a transformers config object.

    Raises:
        UnknownFamilyError: If the model type has no table.
        InvalidArchitectureError: If the config lacks a size, or asks for what the table does not describe.
    """
    if isinstance(config, Architecture):
        return count_parameters_of_shape(config, layout_of(config.model_type))
    content = config if isinstance(config, Mapping) else config.to_dict()
    layout = layout_of(str(content.get("model_type", "(none)")))
    return count_parameters_of_shape(architecture_of(content, layout), layout)
