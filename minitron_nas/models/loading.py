"""Loading a stock folder whole, in the type and on the device that this process computes with."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any
from weakref import finalize

import torch

from minitron_nas.execution.device import compute_dtype, pick_device
from minitron_nas.families.wrappers import TEXT_NAMES
from minitron_nas.models.attention import attend_by_document
from minitron_nas.models.causal_lm import CausalLM, moved
from minitron_nas.models.config import read_config
from minitron_nas.models.placement import find_places, rewritten_bytes
from minitron_nas.models.quiet import quiet_transformers
from minitron_nas.models.text_part import wrapper_in
from minitron_nas.storage.atomic import require_free_bytes

_MODEL_TYPE = "model_type"


def load_for_inference(path: Path) -> CausalLM:
    """Load a stock folder on this process' device, in the dtype it computes best with.

    What the device has no room for lies on this process' other devices, in main memory or in its files: such a model
    can be run, but its layers' weights can neither be read nor trained.

    Args:
        path: The folder.

    Raises:
        DiskSpaceError: If it is a spread mixture of experts, and the disk has no room to put those together.
    """
    device, places = pick_device(), find_places(path)
    if places is None:
        return load_whole(path)
    purpose, remedy = f"the experts of {path}, which is larger than memory,", "name another folder with TMPDIR"
    require_free_bytes(Path(gettempdir()), rewritten_bytes(path, places), purpose, remedy)
    folder = TemporaryDirectory()  # for experts that transformers puts together
    with quiet_transformers(), _quiet_accelerate():
        model = load_stock(path, compute_dtype(device), device_map=places, offload_folder=folder.name)
    finalize(model, folder.cleanup)
    model.eval()
    return model


def load_whole(path: Path) -> CausalLM:
    """Load a stock folder likewise, all of it on this process' device, so that its weights can be read.

    Args:
        path: The folder.
    """
    device = pick_device()
    return moved(load_stock(path, compute_dtype(device)).eval(), device)


def load_for_training(path: Path, device: torch.device | None = None) -> CausalLM:
    """Load a stock folder with float32 weights, on this process' device unless another is named.

    Args:
        path: The folder.
        device: Where to, instead of this process' device.
    """
    return moved(load_stock(path, torch.float32).eval(), device or pick_device())


def load_stock(path: Path, dtype: torch.dtype, **options: Any) -> CausalLM:
    """Load a stock folder; of a wrapper its text part, without the others.

    Args:
        path: The folder.
        dtype: Of the weights.
        **options: Others of `from_pretrained`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # deferred: importing model classes takes seconds

    model: CausalLM
    wrapper = wrapper_in(path)
    if wrapper is None:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=False, **options)
        attend_by_document(model)
        return model
    config = AutoConfig.for_model(**read_config(path))
    if wrapper.either_way:  # transformers finds by this word how stacks in the files lie
        vars(config)[_MODEL_TYPE] = wrapper.model_type
    with quiet_transformers():  # it would report every tensor of the other parts
        model = AutoModelForCausalLM.from_pretrained(
            path, config=config, key_mapping=TEXT_NAMES, dtype=dtype, trust_remote_code=False, **options
        )
    attend_by_document(model)
    vars(model.config).pop(_MODEL_TYPE, None)
    vars(model).pop("_weight_conversions", None)  # else it would be saved under the wrapper's names again
    return model


@contextmanager
def _quiet_accelerate() -> Iterator[None]:
    """Keep accelerate from saying that layers lie elsewhere, which `about_spread` says in words of ours."""
    logger = logging.getLogger("accelerate.big_modeling")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
