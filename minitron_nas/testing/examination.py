"""The whole suite for people: a tiny model of the kind that a config describes, and a verdict of each check."""

import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from minitron_nas.architecture.config import check_described
from minitron_nas.architecture.layout import Layout
from minitron_nas.errors import CheckpointError, MinitronNasError, PlanError
from minitron_nas.families.catalog import with_layout
from minitron_nas.models.config_alone import config_alone
from minitron_nas.models.quiet import quiet_transformers
from minitron_nas.models.relatives import known_layout
from minitron_nas.models.text_part import text_config
from minitron_nas.testing.conformance import CHECKS
from minitron_nas.testing.shrink import shrunk
from minitron_nas.testing.subject import Subject
from minitron_nas.testing.use import USES

TENSORS = "tensors"
"""The first check of all: the table names every tensor of the model with its shape."""

_CONCEPTS = {
    TENSORS: "names, dimensions, config_keys",
    "parameters": "rows: when, unless",
    "norms": "norm",
    "offered": "axes",
    "units": "axes of a dimension and their order",
    "nothing_pruned": "rows, renamed",
    "masked_teacher": "sizes that follow from others; norms; constants",
    "last_layer": "last_kind",
    "states": "states, cached, kinds",
    "layer_by_layer": "layers",
    "rotation": "order of norms and readers, on_branch",
    "loss": "output head",
    "written": "stock folder",
    "scores": "scores",
    "experts": "experts",
    "depth": "layers",
    "packing": "position_ids, states",
    "steps": "prune",
    "axes": "prune",
    "distils": "distillation",
}
"""What of a table each check is about."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check says of a table.

    Attributes:
        check: Its name.
        about: What it is that holds.
        fault: What does not hold instead; None where all is well.
        row: The name in the table that the fault is about, if it is about one.
        tensor: The tensor of the checkpoint, if there is one.
        concept: What of the table is looked at.
    """

    check: str
    about: str
    fault: str | None = None
    row: str | None = None
    tensor: str | None = None
    concept: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the table passes."""
        return self.fault is None


def examine_family(source: str, table: str | None = None, seed: int = 0) -> Iterator[Verdict]:
    """Take a family's table through the whole suite, on a tiny random model of the kind that a config describes.

    Args:
        source: A folder, config file or hub name, of which the config is read and nothing else; or a model type of
            transformers.
        table: The table, as `module:attribute`, if not the one that is known for the config's model type.
        seed: Of weights, ranking and prompt.

    Yields:
        What each check says, as soon as it is known.

    Raises:
        MinitronNasError: If there is no such model or table, or transformers makes no tiny model of the config.
    """
    with quiet():
        name, content = config_alone(source)
        own = load_table(table) if table is not None else None
        with with_layout(own) if own is not None else nullcontext():
            content = text_config(name, content)
            layout = own or known_layout(content)
        config = tiny_config_of(name, content, layout)
    yield from verdicts(layout, config, seed)


def load_table(name: str) -> Layout:
    """Import a table that need not be registered, from where Python looks or from the working folder.

    Args:
        name: `module:attribute`.

    Raises:
        PlanError: If there is none.
    """
    module, separator, attribute = name.partition(":")
    if not (separator and module and attribute):
        raise PlanError(f"--table {name!r} is not of the form module:attribute, such as my_package.jais2:LAYOUT")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise PlanError(
            f"--table {name}: cannot be imported ({type(error).__name__}: {' '.join(str(error).split())}); it is "
            "looked for in the working folder and where Python looks"
        ) from error
    finally:
        sys.path.pop(0)
    if not isinstance(found, Layout):
        raise PlanError(f"--table {name} is a {type(found).__name__}, not a minitron_nas.architecture.layout.Layout")
    return found


def tiny_config_of(name: object, content: Mapping[str, Any], layout: Layout) -> PreTrainedConfig:
    """Return the config of a tiny model that transformers can make.

    Args:
        name: Of the config, for messages.
        content: A `config.json`.
        layout: The table of its family.

    Raises:
        PlanError: If the table is of another type.
        CheckpointError: If transformers makes no model of the config, or no tiny one.
        InvalidArchitectureError: If the table does not describe a value of the config.
    """
    if (model_type := content.get("model_type")) != layout.model_type:
        raise PlanError(f"{name} is a {model_type!r}, the table is of {layout.model_type!r}; give such a config")
    whole = filled(name, content)
    check_described(whole, layout)
    return buildable(name, shrunk(whole, layout.config_names))


def filled(name: object, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with all that transformers fills in.

    Raises:
        CheckpointError: If transformers refuses it.
    """
    try:
        return AutoConfig.for_model(**content).to_dict()
    except Exception as error:
        raise CheckpointError(f"transformers refuses {name}: {' '.join(str(error).split())}") from error


def buildable(name: object, content: Mapping[str, Any]) -> PreTrainedConfig:
    """Return a config of which transformers can make a model.

    Args:
        name: Of the model that it was shrunk from, for messages.
        content: Of the tiny model.

    Raises:
        CheckpointError: If it cannot.
    """
    try:
        config: PreTrainedConfig = AutoConfig.for_model(**content)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise CheckpointError(
            f"transformers makes no tiny model of {name}: {' '.join(str(error).split())}; give a config file of a tiny "
            "model (hidden_size of 64 at most), whose sizes are left as they are"
        ) from error
    return config


def verdicts(layout: Layout, config: PreTrainedConfig, seed: int = 0) -> Iterator[Verdict]:
    """Yield what each check says of a table, in the order in which they explain a fault best; libraries keep quiet.

    Args:
        layout: The table.
        config: As `check_family` takes it.
        seed: Of weights, ranking and prompt.
    """
    with TemporaryDirectory() as folder:
        made: list[Subject] = []

        def make() -> None:
            made.append(Subject.make(layout, config, Path(folder), seed))

        yield _verdict(TENSORS, "The table names every tensor with its shape.", layout, make)
        for check in (*CHECKS, *USES) if made else ():
            about = (check.__doc__ or "").strip().partition("\n")[0]
            yield _verdict(check.__name__.removeprefix("check_"), about, layout, partial(check, made[0]))


def _verdict(name: str, about: str, layout: Layout, check: Callable[[], None]) -> Verdict:
    try:
        with quiet():
            check()
    except (AssertionError, MinitronNasError) as error:
        told = str(error)
    except Exception as error:  # noqa: BLE001 - a wrong table makes any step stumble, and that is what is looked for
        told = f"{type(error).__name__}: {error}"
    else:
        return Verdict(name, about)
    told = " ".join(told.split())
    row, tensor = _named(told, layout)
    return Verdict(name, about, told, row, tensor, _CONCEPTS[name])


def _named(told: str, layout: Layout) -> tuple[str | None, str | None]:
    """Find the row and the tensor that a message names, the most exact if several could be meant."""
    found: list[tuple[str, str]] = []
    for row in layout.rows:
        pattern = re.escape(row.name).replace(r"\{layer\}", r"(?:\{layer\}|\d+)")
        match = re.search(pattern.replace(r"\{expert\}", r"(?:\{expert\}|\d+)"), told)
        if match:
            found.append((row.name, match[0]))
    if found:
        row_name, tensor = max(found, key=lambda names: len(names[1]))
        return row_name, None if "{" in tensor else tensor
    quoted = re.search(r"tensor '([^']+)'", told)
    return None, quoted[1] if quoted else None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and warnings from speaking."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), quiet_transformers():
            yield
    finally:
        logging.disable(disabled)
        if bars:
            transformers_logging.enable_progress_bar()
