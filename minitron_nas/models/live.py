"""Writing a model that lives in memory as a stock Hugging Face folder, without changing it."""

import copy
from pathlib import Path
from typing import TypeAlias

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from minitron_nas.errors import CheckpointError
from minitron_nas.families.wrappers import wrapper_of
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.stock_config import save_stock
from minitron_nas.models.text_part import live_text_model
from minitron_nas.storage.atomic import require_free_bytes, whole_folder

LiveModel: TypeAlias = tuple[CausalLM, PreTrainedTokenizerBase]
"""A loaded model and its tokenizer."""

_PROBE_TEXTS = (
    "Hello, world! I'll say it's 3.14 at 12:45.\n",
    "def f(x):\n\n    return  x  + 1000\t# été 日本 🙂",
)


def save_live_model(source: LiveModel, folder: Path) -> Path:
    """Save a live (model, tokenizer) pair, whole or not at all, and return the folder; of a wrapper its text part.

    Args:
        source: The pair; it stays as it is.
        folder: Where it goes.

    Raises:
        CheckpointError: If the pair is not a plain transformers model and tokenizer, or the tokenizer
            reads differently once it is saved and loaded.
        UnknownFamilyError: If no table describes the text part of a wrapper.
    """
    model, tokenizer = source
    _refuse_odd_pairs(model, tokenizer)
    wrapper = wrapper_of({"model_type": model.config.model_type})
    if wrapper is not None:
        model = live_text_model(model, wrapper)
    with whole_folder(folder) as partial:
        write_stock_folder(model, tokenizer, partial)
    return folder


def write_stock_folder(model: CausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights, config, generation config, tokenizer and chat template into a folder.

    Args:
        model: The model; it stays as it is.
        tokenizer: Its tokenizer.
        folder: An existing folder.

    Raises:
        CheckpointError: If the tokenizer reads differently once it is saved and loaded, or transformers
            refuses the generation config.
        DiskSpaceError: If the weights do not fit on the disk.
    """
    _save_generation_config(model, folder)
    require_free_bytes(folder, model.get_memory_footprint(), "saving the teacher")
    save_stock(model, folder)
    tokenizer.save_pretrained(folder)
    _prove_tokenizer(tokenizer, folder)


def _refuse_odd_pairs(model: object, tokenizer: object) -> None:
    if not isinstance(model, PreTrainedModel):
        raise CheckpointError(
            f"the live teacher is a {type(model).__name__}, not a transformers PreTrainedModel; unwrap it (a "
            "PEFT model with merge_and_unload, a compiled or distributed one through its inner module)"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise CheckpointError(
            f"the live teacher's tokenizer is a {type(tokenizer).__name__}, not a transformers tokenizer; "
            "load it with AutoTokenizer"
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise CheckpointError(
            "the live teacher is quantised; pruning needs plain floating-point weights: load it without a "
            "quantization_config"
        )


def _save_generation_config(model: CausalLM, folder: Path) -> None:
    """Save it before the weights, which take long: transformers saves none that contradicts itself."""
    if model.generation_config is None:
        return
    try:
        copy.deepcopy(model.generation_config).save_pretrained(folder)
    except ValueError as error:
        raise CheckpointError(
            f"transformers refuses to save the live teacher's generation_config ({' '.join(str(error).split())}); "
            "correct model.generation_config, for example set do_sample=True if it samples"
        ) from error


def _prove_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    for text in _PROBE_TEXTS:
        try:
            reloaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            given, loaded = tokenizer(text)["input_ids"], reloaded(text)["input_ids"]
        except Exception as error:  # the tokenizers library raises no other class
            raise CheckpointError(
                f"the tokenizer cannot be loaded and used once it is saved ({' '.join(str(error).split())}); give a "
                "folder or hub name, whose tokenizer students can copy"
            ) from error
        if given != loaded:
            raise CheckpointError(
                f"the tokenizer reads {text!r} as {given}, but as {loaded} once it is saved and loaded by "
                "AutoTokenizer; give a folder or hub name, whose tokenizer students can copy"
            )
