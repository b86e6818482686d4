"""What every test shares: no network, no telemetry, one thread, fixed seeds, and one teacher that has learned."""

import gc
import json
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

# Before any test imports these libraries: they read their environment once.
os.environ |= {
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")

Fill: TypeAlias = Callable[[Path], Any]
TEXT_CHARACTERS = 300_000
TEACHER_SIZES = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 5, "tied": True}


TRIED_THROUGHOUT = frozenset({
    "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "nemotron", "olmo2", "phi3",
    "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2",
})  # fmt: skip
"""Families between which every kind of tensor, norm and layer occurs."""


LONGEST_FIRST = ("end_to_end", "conformance", "pipeline", "execution", "distillation")
"""Folders whose files take minutes: at the end, with nothing left for others to do, they would hold up a run.

Of two workers one makes the runs that are shared while the other tries families, which need none.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, and of a test over all families call some slow.

    `tests/conformance` takes those through every step.
    """
    items.sort(key=_rank)
    families: dict[str, set[str]] = {}
    tried = [(item, str(item.callspec.params.get("model_type"))) for item in items if hasattr(item, "callspec")]
    for item, family in tried:
        families.setdefault(item.nodeid.partition("[")[0], set()).add(family)
    for item, family in tried:
        if len(families[item.nodeid.partition("[")[0]]) > len(TRIED_THROUGHOUT) and family not in TRIED_THROUGHOUT:
            item.add_marker(pytest.mark.slow)


def _rank(item: pytest.Item) -> int:
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Give every test the same random numbers, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test draw from numpy's global generator
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _what_is_loaded_is_no_garbage() -> None:
    """Hide everything loaded so far from the garbage collector, which every training and every run calls."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skip what only a compiler's kernels can show."""
    from minitron_nas.execution.compiler import has_compiler

    if not has_compiler():
        pytest.skip("torch.compile finds no compiler on this machine")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Fill], Path]:
    """Fill a folder of the session once, also where pytest-xdist runs the session in several processes."""
    from minitron_nas.storage.cache import build_once

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"

    def make(name: str, fill: Fill) -> Path:
        return build_once(root / name, fill)

    return make


@pytest.fixture(scope="session")
def text_file(made_once: Callable[[str, Fill], Path]) -> Path:
    """A jsonl file of about 300 kB of English in some seventy documents."""
    from minitron_nas.text.embedded import embedded_documents

    def write(folder: Path) -> None:
        lines = (json.dumps({"text": text}) + "\n" for text in _until(TEXT_CHARACTERS, embedded_documents()))
        (folder / "text.jsonl").write_text("".join(lines), encoding="utf-8")

    return made_once("text", write) / "text.jsonl"


@pytest.fixture(scope="session")
def trained_teacher(made_once: Callable[[str, Fill], Path], text_file: Path) -> Path:
    """A stock folder: a Llama of 0.14 million parameters that has learned some English.

    Its next-token loss is about 2.7 nats, where that of an untrained model is ln 320 = 5.8.
    """

    def train(folder: Path) -> None:
        import torch
        from transformers.utils import logging

        from minitron_nas.testing import tiny_config, tiny_model, tiny_tokenizer

        logging.disable_progress_bar()
        tokenizer = tiny_tokenizer()
        texts = [json.loads(line)["text"] for line in text_file.read_text(encoding="utf-8").splitlines()]
        ids = torch.tensor([token for text in texts for token in tokenizer(text)["input_ids"]])
        sequences = ids[: len(ids) // 64 * 64].view(-1, 64)
        model = tiny_model(tiny_config("llama", **TEACHER_SIZES)).train()
        optimizer = torch.optim.AdamW(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=160)
        draw = torch.Generator().manual_seed(0)
        for _ in range(schedule.total_steps):
            batch = sequences[torch.randint(0, len(sequences), (16,), generator=draw)]
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return made_once("teacher", train)


@pytest.fixture(scope="session")
def wrapper(made_once: Callable[[str, Fill], Path]) -> Callable[..., Path]:
    """A tiny random model of images and text, and its tokenizer, as a folder: `wrapper("gemma3", tied=True)`.

    `wrapper("gemma4 e2b")` is one whose text part has embeddings of every layer, and layers that share keys.
    """

    def make(model_type: str, *, tied: bool = False) -> Path:
        def fill(folder: Path) -> None:
            from minitron_nas.testing import tiny_tokenizer

            _tiny_wrapper(model_type, tied).save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)

        return made_once(f"{model_type}-{tied}", fill)

    return make


def _gemma_4(kind: str, variant: str) -> dict[str, Any]:
    attention = ["sliding_attention", "full_attention"] * 2
    sizes: dict[str, Any] = {"num_hidden_layers": 4, "layer_types": attention, "global_head_dim": 16}
    if variant == "e2b":
        sizes |= {"num_hidden_layers": 5, "layer_types": [*attention[:3], *attention[:2]]}
        sizes |= {"hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 320}
        return {**sizes, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}
    sizes |= {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
    if kind == "gemma4_text":
        sizes |= {"hidden_size_per_layer_input": 0, "enable_moe_block": True}
        sizes |= {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 40}
    return sizes


def _tiny_wrapper(name: str, tied: bool) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    text: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "sliding_window": 8, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip
    turning = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    picture = {"image_size": 28, "patch_size": 14}
    siglip = {**tower, **picture, "model_type": "siglip_vision_model"}
    clip = {**tower, **picture, "model_type": "clip_vision_model"}
    adapter = {"projector_input_dim": 16, "projector_output_dim": 16}
    qwen = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 48}
    parts: dict[str, tuple[str, dict[str, Any]]] = {
        "gemma3": ("gemma3_text", siglip),
        "gemma4": ("gemma4_text", {**tower, "patch_size": 14, "num_key_value_heads": 2, "head_dim": 8}),
        "gemma4_unified": ("gemma4_unified_text", {"mm_embed_dim": 16, "mm_posemb_size": 8}),
        "idefics3": ("llama", {**tower, **picture, "model_type": "idefics3_vision"}),
        "internvl": (
            "qwen3",
            {**tower, "image_size": [28, 28], "patch_size": [14, 14], "model_type": "internvl_vision"},
        ),
        "llama4": ("llama4_text", {**tower, **picture, "vision_output_dim": 16, **adapter}),
        "llava": ("llama", clip),
        "llava_next": ("mistral", clip),
        "llava_onevision": ("qwen2", siglip),
        "mistral3": ("mistral", {**tower, **picture, "head_dim": 8, "model_type": "pixtral"}),
        "qwen2_vl": ("qwen2_vl_text", {"depth": 1, "embed_dim": 16, "hidden_size": 48, "num_heads": 2}),
        "qwen2_5_vl": ("qwen2_5_vl_text", qwen),
        "qwen3_5": ("qwen3_5_text", {**qwen, "num_position_embeddings": 16}),
        "qwen3_5_moe": ("qwen3_5_moe_text", {**qwen, "num_position_embeddings": 16}),
        "qwen3_vl": ("qwen3_vl_text", {**qwen, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}),
        "qwen3_vl_moe": ("qwen3_vl_moe_text", {**qwen, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}),
        "smolvlm": ("llama", {**tower, **picture, "model_type": "smolvlm_vision"}),
    }
    model_type, _, variant = name.partition(" ")
    kind, vision = parts[model_type]
    if not kind.startswith("qwen2"):
        text["head_dim"] = 8
    if kind.startswith("qwen3_5"):
        text |= {"linear_num_key_heads": 2, "linear_num_value_heads": 6, "num_hidden_layers": 4}
        text |= {"linear_key_head_dim": 4, "linear_value_head_dim": 12}
    if kind == "qwen3_5_moe_text":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
        text |= {"shared_expert_intermediate_size": 56}
    if kind == "qwen3_vl_moe_text":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
    if kind.startswith("gemma4"):
        text |= _gemma_4(kind, variant)
    if kind == "llama4_text":
        text |= {"intermediate_size_mlp": 56, "interleave_moe_layer_step": 2, "num_local_experts": 4}
    if kind.endswith(("vl_text", "vl_moe_text")):
        text |= {"rope_parameters": turning}
    tokens = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
    config = AutoConfig.for_model(
        model_type, text_config={**text, "model_type": kind}, vision_config=vision, tie_word_embeddings=tied, **tokens
    )
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForImageTextToText.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise + 1 if parameter.dim() == 1 else noise / parameter.shape[-1] ** 0.5)
    return model.eval()


@pytest.fixture
def bos_tokenizer() -> Any:
    """The tiny tokenizer, which begins a text with BOS, as Gemma's and Llama's do."""
    from tokenizers.processors import TemplateProcessing

    from minitron_nas.testing import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    start = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{start[0]} $A", special_tokens=[start])
    return tokenizer


@pytest.fixture(scope="session")
def tiny_settings() -> dict[str, Any]:
    """Fields of a `FamilyPlan` that suit the trained teacher: six candidates, three trials, seconds a student."""
    neurons = {"min_fraction": 0.25, "step_fraction": 0.125, "multiple_of": 8}
    axes = {
        "num_hidden_layers": {"values": [4, 5]},
        "hidden_size": {"values": [36, 42, 48]},
        "intermediate_size": neurons,
    }
    return {
        "space": {"axes": axes, "tolerance": 0.05},
        "text": {"sequence_length": 64, "calibration_samples": 32, "validation_samples": 16},
        "search": {"max_screened": 6, "num_finalists": 3, "num_rungs": 2, "tokens": "1k"},
        "distillation": {
            "tokens": "10k",
            "batch_sequences": 4,
            "micro_batch_sequences": 4,
            "learning_rate": 5e-4,
            "num_evaluations": 2,
        },
        "evaluation": {"prompt_tokens": 8, "decode_tokens": 2, "repeats": 1},
        "baselines": ["depth_only", "random_weights"],
        "runner": {"kind": "local"},
    }


def _until(num_characters: int, documents: Iterator[str]) -> Iterator[str]:
    """The first documents, until they hold the wanted number of characters."""
    for document in documents:
        yield document
        num_characters -= len(document)
        if num_characters <= 0:
            return


@pytest.fixture(scope="session")
def one_ray() -> Iterator[Any]:
    """An embedded Ray of two CPUs, started once for all tests."""
    import ray

    from minitron_nas.execution import ray_tune  # noqa: F401 - sets what Ray reads from the environment

    ray.init(
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=10**8,
    )
    yield ray
    ray.shutdown()
