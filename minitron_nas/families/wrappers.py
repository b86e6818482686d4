"""Which models of images and text hold a text model of a known family, and under which names."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TEXT_NAMES = {
    r"^model\.(language_model|text_model)\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
"""Patterns of what a wrapper puts in front of its text model's names, and what stands there in the text model.

The first is what transformers 5 has in memory, and writes for Qwen3-VL; Gemma 3 and Mistral 3 lie on disk under the
others, Qwen2.5-VL under the text model's own names. They serve as `key_mapping` of `from_pretrained`, too.
"""

_IN_MODEL = "model."
_OF_GEMMA_4 = ("vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.", "vision_embedder.")
_WRITTEN = ("hidden_size",)
_HEADS = ("num_attention_heads", "num_key_value_heads")
_PREDICTS = "mtp."
_DIMS_OF_STACK = 3
_TOWERS = ("vision_tower.", "multi_modal_projector.", "image_newline")


@dataclass(frozen=True, slots=True)
class Tower:
    """What stands beside a text part: what looks at pictures, and projects what it sees into the text part's channels.

    Attributes:
        model_type: Of the wrapper that holds both.
        num_fed_layers: How many of the first layers of the text part take what it has seen, beside the embedding.
        kept_sizes: The text part's sizes that stay with it.
        is_there: Whether its tensors lie in the folder that the text part is read from.
        num_parameters: Numbers in its tensors; 0 where these were not looked at.
        num_bytes: Of these in files.
    """

    model_type: str
    num_fed_layers: int = 0
    kept_sizes: tuple[str, ...] = _WRITTEN
    is_there: bool = True
    num_parameters: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A type of model that holds a text model beside parts of other kinds.

    Attributes:
        model_type: As `config.json` names it.
        others: How names of tensors that are no part of the text model begin, with or without `model.` before.
        text_types: Families by what the text part's config calls itself, where that is no family's name.
        fed_layers: The key of its vision config whose list says how many of the first layers of the text part take
            what the tower has seen, beside the embedding; empty where none do.
        head_dim_is_derived: Whether it takes the channels of a head to be hidden_size / num_attention_heads, whatever
            the text part does alone.
        either_way: Name endings of the stacks in which its files hold all experts of a layer, each with the dimension
            of a stack that counts hidden channels in memory. A stack that has another size there lies the other way
            round, and is turned.
        computes: Values of keys of the text part's config by which it computes, whatever its own config says.
    """

    model_type: str
    others: tuple[str, ...] = _TOWERS
    text_types: Mapping[str, str] = field(default_factory=dict)
    fed_layers: str = ""
    head_dim_is_derived: bool = False
    either_way: Mapping[str, int] = field(default_factory=dict)
    computes: Mapping[str, Any] = field(default_factory=dict)

    def family(self, text_type: str) -> str:
        """Return the model type under which the text part stands alone.

        Args:
            text_type: What the text part's config calls itself.
        """
        return self.text_types.get(text_type, text_type)

    def text_names(self, names: Iterable[str]) -> dict[str, str]:
        """Return the text model's own names of its tensors, by those that they have in the wrapper.

        A name that neither begins as another part's nor carries a prefix is returned as it is.

        Args:
            names: Of all tensors of the wrapper, on disk or in memory.
        """
        return {name: _bare(name) for name in names if not name.removeprefix(_IN_MODEL).startswith(self.others)}

    def other_names(self, names: Collection[str]) -> list[str]:
        """Return the names of what is kept as it is beside another text part: towers, projectors, their tokens.

        What predicts further tokens at a time is not kept, because it reads the states of the text part that was.

        Args:
            names: Of all tensors of the wrapper, on disk or in memory.
        """
        others = set(names) - self.text_names(names).keys()
        return [name for name in names if name in others and not name.removeprefix(_IN_MODEL).startswith(_PREDICTS)]

    def lies_turned(self, name: str, shape: Sequence[int], hidden_size: int) -> bool:
        """Whether a tensor is a stack of experts that lies the other way round than in memory, as transformers tells.

        Args:
            name: Of the tensor.
            shape: Its shape in the file.
            hidden_size: Of the text part.
        """
        along = next((place for ending, place in self.either_way.items() if name.endswith(ending)), None)
        return along is not None and len(shape) == _DIMS_OF_STACK and shape[along] != hidden_size

    def tower(self, config: Mapping[str, Any]) -> Tower:
        """Return what stands beside the text part.

        Args:
            config: The content of the wrapper's `config.json`, with all that transformers fills in.
        """
        fed = (config.get("vision_config") or {}).get(self.fed_layers)
        kept = (*_WRITTEN, *(_HEADS if self.head_dim_is_derived else ()))
        return Tower(self.model_type, len(fed) if isinstance(fed, list) else 0, kept)


WRAPPERS = {
    wrapper.model_type: wrapper
    for wrapper in (
        Wrapper("gemma3"),
        Wrapper("gemma4", _OF_GEMMA_4),
        Wrapper("gemma4_unified", _OF_GEMMA_4),
        Wrapper("idefics3", ("vision_model.", "connector.")),
        Wrapper("internvl"),
        Wrapper("llama4", ("vision_model.", "multi_modal_projector.")),
        Wrapper("llava"),
        Wrapper("llava_next"),
        Wrapper("llava_onevision"),
        Wrapper("mistral3"),
        Wrapper("qwen2_vl", ("visual.",), {"qwen2_vl_text": "qwen2"}, head_dim_is_derived=True),
        Wrapper("qwen2_5_vl", ("visual.",), {"qwen2_5_vl_text": "qwen2"}, head_dim_is_derived=True),
        Wrapper("qwen3_5", ("visual.", _PREDICTS)),
        Wrapper("qwen3_5_moe", ("visual.", _PREDICTS)),
        Wrapper("qwen3_vl", ("visual.",), {"qwen3_vl_text": "qwen3"}, fed_layers="deepstack_visual_indexes"),
        Wrapper(
            "qwen3_vl_moe",
            ("visual.",),
            {"qwen3_vl_moe_text": "qwen3_moe"},
            fed_layers="deepstack_visual_indexes",
            either_way={".mlp.experts.gate_up_proj": 2, ".mlp.experts.down_proj": 1},
            computes={"norm_topk_prob": True},
        ),
        Wrapper("smolvlm", ("vision_model.", "connector.")),
    )
}
"""Every known wrapper, by model type."""


def wrapper_of(config: Mapping[str, Any]) -> Wrapper | None:
    """Return the wrapper that a config describes, None where it is another model's.

    Args:
        config: The content of a `config.json`.
    """
    return WRAPPERS.get(str(config.get("model_type")))


def _bare(name: str) -> str:
    for pattern, plain in TEXT_NAMES.items():
        name, found = re.subn(pattern, plain, name)
        if found:
            break
    return name
