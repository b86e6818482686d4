"""What stands in a stock folder means the same to transformers, to its older versions and to other engines.

These tests run where an environment variable names what they read with; nothing of it is needed otherwise.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_nas.families.catalog import layouts
from minitron_nas.models.stock_config import save_stock
from minitron_nas.testing import tiny_config, tiny_model

OLDER = "MINITRON_NAS_OLDER_TRANSFORMERS"
"""Names a folder in which transformers 4 is installed, from 4.46 on."""
MLX = "MINITRON_NAS_MLX"
"""Names a Python that has mlx-lm (`pip install mlx-lm mlx-cpu` where there is no Apple silicon)."""

FEWEST = 20
"""Families that every one of them knows."""
NUM_TOKENS, EVERY = 200, 17
FULL, SLIDING = "full_attention", "sliding_attention"
PLAIN = {"rope_type": "default", "rope_theta": 5e5}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5}
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "rope_theta": 5e5}
LONG = {"rope_type": "longrope", "rope_theta": 5e5}
ORIGINAL = {"original_max_position_embeddings": 64}
FACTORS = {"short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 2.0, 4.0, 8.0]}
VARIANTS: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_groups": 1},
    "gemma2": {"sliding_window": 16},
    "gemma3_text": {
        "rope_parameters": {FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}, SLIDING: PLAIN},
    },
    "gpt_neox": {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}},
    "exaone4": {"layer_types": [SLIDING] * 3 + [FULL], "sliding_window_pattern": "LLLG", "sliding_window": 16},
    "granite": {"rope_parameters": {**PLAIN, "rope_type": "dynamic", "factor": 2.0}},
    "granitemoehybrid": {
        "mamba_n_groups": 1,
        "position_embedding_type": "nope",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 40,
    },
    "llama": {"rope_parameters": LLAMA3 | ORIGINAL},
    "mistral": {"sliding_window": 32},
    "mixtral": {"rope_parameters": {**LONG, **FACTORS, **ORIGINAL, "factor": 2.0}},
    "nemotron": {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}},
    "olmo2": {"rope_parameters": {**PLAIN, "rope_type": "linear", "factor": 4.0}},
    "phi3": {**ORIGINAL, "rope_parameters": {**LONG, **FACTORS, **ORIGINAL, "partial_rotary_factor": 1.0}},
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    "qwen3": {"rope_parameters": YARN | ORIGINAL},
    "qwen3_moe": {"rope_parameters": YARN | ORIGINAL},
    "smollm3": {"rope_parameters": PLAIN, "no_rope_layers": [0, 1, 1, 0]},
    "starcoder2": {"sliding_window": 16},
}
"""What readers are known to understand in their own way, by model type."""

READ_BY_TRANSFORMERS = f"""
import json, sys, torch, transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
ids = torch.arange(3, {3 + NUM_TOKENS}).view(1, -1) % 300
found = {{}}
for folder in sys.argv[1:]:
    if json.load(open(folder + "/config.json"))["model_type"] not in CONFIG_MAPPING:
        continue
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        assert model.dtype == torch.float32, model.dtype
        with torch.no_grad():
            found[folder] = model(ids).logits[0, ::{EVERY}].flatten().tolist()
    except Exception as error:
        found[folder] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps([transformers.__version__, found]))
"""
NOT_IN_4_57 = {"apertus": "it keeps the parameters of an activation in bfloat16"}
NOT_IN_4_46 = {
    "mixtral": "it has no scaling of rotary positions",
    "qwen2": "its eager attention gives all layers the window",
}

READ_BY_MLX = f"""
import importlib.metadata, importlib.util, json, sys
from pathlib import Path
import mlx.core as mx
from mlx_lm.utils import MODEL_REMAPPING, load_model
ids = mx.array([[i % 300 for i in range(3, {3 + NUM_TOKENS})]])
found = {{}}
for folder in sys.argv[1:]:
    name = json.load(open(folder + "/config.json"))["model_type"]
    if importlib.util.find_spec("mlx_lm.models." + MODEL_REMAPPING.get(name, name)) is None:
        continue
    try:
        model, _ = load_model(Path(folder))
        found[folder] = model(ids).astype(mx.float32)[0, ::{EVERY}].flatten().tolist()
    except Exception as error:
        found[folder] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps([importlib.metadata.version("mlx-lm"), found]))
"""
NOT_IN_MLX: dict[str, dict[str, Any]] = {
    "apertus": {"mlp_bias": False, "post_norm": False, "qk_norm": True},
    "deepseek_v2": "it asks for scaled rotary positions",
    "ernie4_5_moe": "its routers choose without their bias",
    "gemma": "its GELU is the exact one",
    "gemma2": "it knows no sliding window there",
    "glm": "it turns whole heads where the config says a part",
    "glm4_moe_lite": "it multiplies latents in another order, and is 1e-4 apart",
    "gpt2": "it asks for n_ctx, which published configs have and a new one has not",
    "gpt_neox": "its FFN has four times the hidden size, whatever the config says",
    "gpt_oss": "it looks for experts under the names of packed ones",
    "llama4_text": "it has no experts there",
    "mistral": "it knows no sliding window there",
    "mixtral": "it knows no scaling of rotary positions there",
    "nemotron_h": "its steps of time are not bounded below",
    "qwen2": "it knows no sliding window there",
    "qwen3_moe": "it knows no scaling of rotary positions there",
    "starcoder2": "it knows no sliding window, and its GELU is the exact one",
}
IN_MLX: dict[str, dict[str, Any]] = {
    "apertus": {"mlp_bias": False, "post_norm": False, "qk_norm": True},
    "cohere": {"tie_word_embeddings": True},
    "cohere2": {"tie_word_embeddings": True},
    "exaone_moe": {"is_moe_layer": [False, True, True, True]},
    "gemma3_text": {"num_hidden_layers": 6, "hidden_size": 36},
    "lfm2": {"tie_word_embeddings": True},
    "lfm2_moe": {"tie_word_embeddings": True},
    "mellum": {"mlp_layer_types": ["sparse"] * 4},
    "minimax_m2": {"rotary_dim": 8, "shared_intermediate_size": 0},
    "phimoe": {"attention_bias": True, "lm_head_bias": True},
    "solar_open": {"first_k_dense_replace": 0, "partial_rotary_factor": 1.0},
}
"""What MLX takes for granted: tied embeddings, a whole period of layers, experts in every one of Mellum 2, a scale that
bfloat16 can hold, keys that published configs have."""


def stock(model_type: str, changes: dict[str, Any], into: Path) -> tuple[str, torch.Tensor]:
    """Save a tiny model, and return its folder with the logits that this version of transformers reads from it."""
    folder, ids = into / model_type, torch.arange(3, 3 + NUM_TOKENS).view(1, -1) % 300
    save_stock(tiny_model(tiny_config(model_type, **changes)), folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return str(folder), model(ids).logits[0, ::EVERY].flatten()


def read(command: Sequence[str], expected: dict[str, torch.Tensor], **environment: str) -> tuple[str, dict[str, str]]:
    """Let another reader say its version and, of each folder that it knows and reads differently, what differs."""
    told = subprocess.run(
        [*command, *expected], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    version, found = json.loads(told.stdout.splitlines()[-1])
    assert len(found) >= FEWEST
    wrong = {}
    for folder, logits in found.items():
        try:
            assert not isinstance(logits, str), logits
            torch.testing.assert_close(torch.tensor(logits), expected[folder], rtol=1e-5, atol=5e-5)
        except AssertionError as error:
            wrong[Path(folder).name] = str(error)
    return version, wrong


@pytest.mark.skipif(OLDER not in os.environ, reason=f"{OLDER} names no folder with transformers 4 installed")
def test_transformers_4_computes_the_same(tmp_path: Path) -> None:
    expected = dict(stock(each, VARIANTS.get(each, {}), tmp_path) for each in layouts())
    version, wrong = read([sys.executable, "-c", READ_BY_TRANSFORMERS], expected, PYTHONPATH=os.environ[OLDER])
    assert version.startswith("4.")
    known = NOT_IN_4_46 if version.startswith("4.46") else NOT_IN_4_57
    assert wrong.keys() == known.keys(), wrong


@pytest.mark.skipif(MLX not in os.environ, reason=f"{MLX} names no Python that has mlx-lm")
def test_mlx_computes_the_same(tmp_path: Path) -> None:
    expected = dict(stock(each, {**VARIANTS.get(each, {}), **IN_MLX.get(each, {})}, tmp_path) for each in layouts())
    _, wrong = read([os.environ[MLX], "-c", READ_BY_MLX], expected)
    assert wrong.keys() <= NOT_IN_MLX.keys(), {name: wrong[name] for name in wrong.keys() - NOT_IN_MLX.keys()}
