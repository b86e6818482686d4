"""Turning a GGUF file into a stock Hugging Face folder, whole or not at all."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.gguf_config import config_of, family_of
from minitron_nas.models.gguf_file import GgufFile, digest_of, parts_of, reading
from minitron_nas.models.gguf_tensors import GgufNames, check_names, read_tensors
from minitron_nas.models.gguf_tokenizer import tokenizer_of
from minitron_nas.models.live import write_stock_folder
from minitron_nas.models.stock import model_from_tensors
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.cache import build_once, cache_folder

_CONVERSION = "v3"  # part of the cache key: raise it when the conversion writes other bytes


def convert_gguf(file: Path, progress: Progress = silent) -> Path:
    """Return the stock folder of a GGUF file, converting it the first time.

    Every tensor and every key that shapes the computation is used, or the file is refused with its
    name; nothing is initialised. Quantised weights are dequantised and stored as bfloat16, plain
    ones as float32. Of a file that was split any part may be given.

    Args:
        file: The file.
        progress: Told the number of bytes read.

    Raises:
        TeacherNotFoundError: If there is no such file, or a part of it is missing.
        CheckpointError: If it is not a GGUF file, is cut short, or says or holds what is not read.
        UnknownFamilyError: If no table describes the model in it.
    """
    parts = parts_of(file)
    folder = cache_folder() / "gguf" / f"{parts[0].stem}-{digest_of(parts)}-{_CONVERSION}"
    return build_once(folder, partial(_convert, parts, progress))


def _convert(parts: list[Path], progress: Progress, folder: Path) -> None:
    file = GgufFile.open(parts)
    with reading(file.path):
        layout, config, architecture, names = described(file)
        tokenizer = tokenizer_of(file)
        dtype = torch.bfloat16 if file.is_quantised else torch.float32
        places = [(place, names.place(place)) for place in layout.tensors(architecture)]
        tensors = read_tensors(file, config, places, dtype, progress)
        model = model_from_tensors(config, tensors, dtype)  # refuses what transformers would initialise
    model.generation_config = GenerationConfig.from_model_config(model.config)
    write_stock_folder(model, tokenizer, folder)


def described(file: GgufFile) -> tuple[Layout, dict[str, Any], Architecture, GgufNames]:
    """Return what a file says of its model: table, content of `config.json`, shape, and how its tensors are called.

    Raises:
        CheckpointError: If a key or a tensor is missing, or nothing reads it; use it inside `reading`.
        UnknownFamilyError: If no table describes the model.
    """
    family = family_of(file)
    layout = layout_of(family.model_type)
    config = config_of(file, family, layout)
    names = GgufNames(file, layout, _num_layers(file))
    config |= names.flags(file)
    architecture = architecture_of(AutoConfig.for_model(**config).to_dict(), layout)
    check_names(file, layout, architecture, names)
    return layout, config, architecture, names


def _num_layers(file: GgufFile) -> int:
    return int(file.keys[f"{file.keys['general.architecture']}.block_count"])
