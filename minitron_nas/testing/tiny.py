"""Tiny random models and tokenizers of every known family."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from minitron_nas.architecture.layout import Layout
from minitron_nas.families.catalog import layout_of

_START, _END = "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = ("<|endoftext|>", _START, _END)
_MERGED_LETTERS = "etaoinshrdlcum"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TINY_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": SPECIAL_TOKENS.index(_START),
    "eos_token_id": SPECIAL_TOKENS.index(_END),
    "pad_token_id": SPECIAL_TOKENS.index(_END),
}
_TINY_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 56,
}
_TINY_MIXERS = {"mamba_num_heads": 6, "mamba_head_dim": 8, "mamba_num_groups": 2}
_TINY_FIXED: dict[str, int] = {
    "conv_L_cache": 3,
    "conv_kernel": 3,
    "kv_lora_rank": 12,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_value_head_dim": 12,
    "mamba_d_conv": 3,
    "mamba_d_state": 16,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "ssm_state_size": 16,
    "v_head_dim": 6,
    "vocab_size_per_layer_input": 320,
}
"""Sizes that families do not prune, for those whose table names them."""

_TINY_GEMMA_4 = {"global_head_dim": 16, "hidden_size_per_layer_input": 0, "num_global_key_value_heads": 1}
_ATTENTION = ("sliding_attention", "full_attention")
TINY_E2B: dict[str, Any] = {
    "hidden_size_per_layer_input": 12,
    "layer_types": [_ATTENTION[0], *_ATTENTION[::-1], *_ATTENTION[::-1], *_ATTENTION],
    "num_hidden_layers": 7,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
}
"""Changes of a `gemma4_text` with embeddings of every layer, and last layers that share keys and are twice as wide."""

TINY_E4B: dict[str, Any] = {
    "hidden_size_per_layer_input": 12,
    "layer_types": [*_ATTENTION, *_ATTENTION, _ATTENTION[0], *_ATTENTION],
    "num_hidden_layers": 7,
    "num_kv_shared_layers": 4,
}
"""The same with more layers that share keys, none of which is wider than others."""

_TINY_OF_FAMILY: dict[str, dict[str, Any]] = {
    "afmoe": {"mup_enabled": True},
    "bamba": {"attn_layer_indices": [1, 3], "mamba_n_heads": 12},
    "cohere2_moe": {
        "first_k_dense_replace": 1,
        "intermediate_size": 40,
        "logit_scale": 0.25,
        "num_shared_experts": 1,
        "prefix_dense_intermediate_size": 96,
    },
    "deepseek_v2": {"first_k_dense_replace": 1, "num_key_value_heads": 6, "q_lora_rank": None},
    "deepseek_v3": {
        "first_k_dense_replace": 1,
        "n_group": 2,
        "num_key_value_heads": 6,
        "num_local_experts": 8,
        "topk_group": 1,
    },
    "dots1": {"first_k_dense_replace": 1, "n_shared_experts": 1},
    "gemma4_text": _TINY_GEMMA_4,
    "gemma4_unified_text": _TINY_GEMMA_4,
    "glm4_moe_lite": {"num_key_value_heads": 6},
    "granitemoehybrid": {"mamba_n_heads": 12, "num_local_experts": 0, "shared_intermediate_size": 96},
    "granitemoeshared": {"intermediate_size": 40, "shared_intermediate_size": 56},
    "hunyuan_v1_moe": {"intermediate_size": 40},
    "lfm2": {"block_multiple_of": 8},
    "nemotron_h": {"moe_shared_expert_intermediate_size": 56},
    "opt": {"ffn_dim": 96},
    "llama4_text": {"intermediate_size": 40, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 2},
}
"""What a family needs beside."""

_TINY_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "gemma4_text": ("layer_types", ("sliding_attention", "full_attention")),
    "gemma4_unified_text": ("layer_types", ("sliding_attention", "full_attention")),
    "granitemoehybrid": ("layer_types", ("linear_attention", "full_attention")),
    "lfm2": ("layer_types", ("conv", "full_attention")),
    "lfm2_moe": ("layer_types", ("conv", "full_attention")),
    "mellum": ("mlp_layer_types", ("dense", "sparse")),
    "nemotron_h": ("layers_block_type", ("linear_attention", "mlp", "full_attention", "mlp")),
}
"""Kinds of layers, over and over, where those that transformers takes for itself are not what a table describes."""


def tiny_config(model_type: str, *, tied: bool = False, **changes: Any) -> PreTrainedConfig:
    """Return a config of about 0.1 million parameters; `changes` are config fields to replace or add.

    Args:
        model_type: One of the known families.
        tied: Whether the output head is the embedding.
        **changes: Config fields to replace or add.
    """
    layout = layout_of(model_type)
    experts = _TINY_EXPERTS if layout.has_experts else {}
    fixed = {key: size for key, size in _TINY_FIXED.items() if key in layout.fixed_keys()}
    mixers = _mixers(layout) if layout.has_mamba else {}
    own: dict[str, Any] = dict(_TINY_OF_FAMILY.get(model_type, {}))
    if model_type in _TINY_KINDS:
        key, kinds = _TINY_KINDS[model_type]
        num_layers = changes.get("num_hidden_layers", _TINY_SIZES["num_hidden_layers"])
        own[key] = list(itertools.islice(itertools.cycle(kinds), num_layers))
    fields = {**_TINY_SIZES, **experts, **fixed, **mixers, **own, "tie_word_embeddings": tied, **changes}
    return AutoConfig.for_model(model_type, **fields)


def _mixers(layout: Layout) -> dict[str, int]:
    """Return what a config says of Mamba mixers."""
    sizes = {key: size for name, size in _TINY_MIXERS.items() for key in layout.config_names(name)}
    width = {layout.mixer_width: _TINY_MIXERS["mamba_num_heads"] * _TINY_MIXERS["mamba_head_dim"]}
    return sizes | (width if layout.mixer_width else {})


def tiny_tokenizer(vocab_size: int = 320) -> FastTokenizer:
    """Return a byte-level BPE tokenizer that encodes any text without loss, with a ChatML template.

    Raises:
        ValueError: If `vocab_size` cannot hold the special tokens and all 256 bytes, or exceeds what
            the built-in letter pairs can fill.
    """
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pairs = list(itertools.product(_MERGED_LETTERS, _MERGED_LETTERS))
    if not len(tokens) <= vocab_size <= len(tokens) + len(pairs):
        raise ValueError(f"vocab_size={vocab_size} is not in {len(tokens)}..{len(tokens) + len(pairs)}")
    merges = pairs[: vocab_size - len(tokens)]
    vocab = {token: i for i, token in enumerate([*tokens, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = FastTokenizer(
        tokenizer_object=tokenizer,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        additional_special_tokens=list(SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def tiny_model(config: PreTrainedConfig, seed: int = 0, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a model in evaluation mode whose every parameter is random, norms and biases too, and every stored buffer.

    The same config and seed give the same bits; torch's global random state is left alone.

    Args:
        config: What to build.
        seed: Of the parameters.
        dtype: Of the parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        for name, buffer in model.named_buffers():
            if name in model.state_dict():
                noise = 0.2 * torch.randn(buffer.shape, generator=generator)
                buffer.add_(noise if buffer.dim() else noise * buffer)  # such as the small number of an activation
    model.eval()
    return model


def tiny_checkpoint(
    folder: Path, model_type: str, seed: int = 0, *, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """Save a tiny random model and its tokenizer as a stock Hugging Face folder and return the folder.

    Args:
        folder: Where to write; made if absent.
        model_type: One of the known families.
        seed: Seed of the parameters.
        dtype: Type of the stored tensors.
        **changes: Arguments of `tiny_config`: `tied` or config fields.
    """
    config = tiny_config(model_type, **changes)
    tiny_model(config, seed, dtype=dtype).save_pretrained(folder)
    tiny_tokenizer(config.vocab_size).save_pretrained(folder)
    return folder


def rewrite_tensors(folder: Path, changes: Mapping[str, torch.Tensor | None]) -> None:
    """Replace, add or (with None) remove tensors of a one-file checkpoint.

    Args:
        folder: The checkpoint.
        changes: Tensors by name.
    """
    file = folder / "model.safetensors"
    tensors = {**load_file(file), **changes}
    save_file({name: t for name, t in tensors.items() if t is not None}, file, metadata={"format": "pt"})
