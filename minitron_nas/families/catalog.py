"""Which families exist: the tables of this package and those of others, looked up by `model_type`."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.costs import count_parameters as count_parameters_of_shape
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import UnknownFamilyError
from minitron_nas.families import (
    afmoe,
    apertus,
    arcee,
    bamba,
    cohere,
    cohere2,
    cohere2_moe,
    cwm,
    deepseek_v2,
    deepseek_v3,
    dots1,
    ernie4_5,
    ernie4_5_moe,
    exaone4,
    exaone_moe,
    falcon_h1,
    flex_olmo,
    gemma,
    gemma2,
    gemma3_text,
    gemma4_text,
    gemma4_unified_text,
    glm,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    gpt2,
    gpt_neox,
    gpt_oss,
    granite,
    granite_swa,
    granitemoe,
    granitemoehybrid,
    granitemoeshared,
    helium,
    hunyuan_v1_dense,
    hunyuan_v1_moe,
    hyperclovax,
    internlm3,
    iquestcoder,
    lfm2,
    lfm2_moe,
    llama,
    llama4_text,
    mellum,
    minimax_m2,
    ministral,
    ministral3,
    mistral,
    mixtral,
    nemotron,
    nemotron_h,
    olmo2,
    olmo3,
    olmoe,
    opt,
    phi,
    phi3,
    phimoe,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_5_moe_text,
    qwen3_5_text,
    qwen3_moe,
    qwen3_next,
    seed_oss,
    smollm3,
    solar_open,
    stablelm,
    starcoder2,
    vaultgemma,
)

ENTRY_POINT_GROUP = "minitron_nas.families"
"""Entry points of this group name a `Layout` in another package."""

_MODULES = (
    afmoe, apertus, arcee, bamba, cohere, cohere2, cohere2_moe, cwm, deepseek_v2, deepseek_v3, dots1, ernie4_5,
    ernie4_5_moe, exaone4, exaone_moe, falcon_h1, flex_olmo, gemma, gemma2, gemma3_text, gemma4_text,
    gemma4_unified_text, glm, glm4, glm4_moe, glm4_moe_lite, gpt2, gpt_neox, gpt_oss, granite, granite_swa, granitemoe,
    granitemoehybrid, granitemoeshared, helium, hunyuan_v1_dense, hunyuan_v1_moe, hyperclovax, internlm3, iquestcoder,
    lfm2, lfm2_moe, llama, llama4_text, mellum, minimax_m2, ministral, ministral3, mistral, mixtral, nemotron,
    nemotron_h, olmo2, olmo3, olmoe, opt, phi, phi3, phimoe, qwen2, qwen2_moe, qwen3, qwen3_5_moe_text, qwen3_5_text,
    qwen3_moe, qwen3_next, seed_oss, smollm3, solar_open, stablelm, starcoder2, vaultgemma,
)  # fmt: skip


@cache
def layouts() -> dict[str, Layout]:
    """Return every known table by model type; one of another package replaces ours of the same type.

    An entry point that names no table, or whose package fails to import, is told on stderr, and is passed over.
    """
    known = {module.LAYOUT.model_type: module.LAYOUT for module in _MODULES}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        layout = _loaded(entry)
        if layout is not None:
            known[layout.model_type] = layout
    return dict(sorted(known.items()))


def layout_of(model_type: str, told: str = "") -> Layout:
    """Return the table of a model family.

    Args:
        model_type: As `config.json` names it.
        told: What else there is to say where no table describes it.

    Raises:
        UnknownFamilyError: If no table describes it.
    """
    try:
        return layouts()[model_type]
    except KeyError:
        raise UnknownFamilyError(
            f"model type {model_type!r} is no known family; {told and f'{told}; '}"
            f"`minitron-nas ls families` lists the {len(layouts())} that are known, "
            "`minitron-nas draft-family MODEL` prints a first table for it, and minitron_nas/families/README.md tells "
            "how to add one"
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


def _loaded(entry: EntryPoint) -> Layout | None:
    try:
        layout = entry.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the code of another package raises
        fault = f"cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
    else:
        if isinstance(layout, Layout):
            return layout
        fault = f"is a {type(layout).__name__}, not a minitron_nas.architecture.layout.Layout"
    package = f"package {entry.dist.name}, " if entry.dist else ""
    if sys.stderr is not None:
        sys.stderr.write(
            f"{package}entry point {entry.name!r} of group {ENTRY_POINT_GROUP!r}: {entry.value} {fault}; its family is "
            "not known until the package is repaired or removed\n"
        )
    return None


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
