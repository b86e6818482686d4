"""Streaming surgery at the size of real teachers: an 8B-shaped checkpoint of 16 GB cut to the 4.5B width shape.

Prints wall time and peak memory of `minitron-nas prune` beside `cp -r` of the same folder, both with
a cold cache and timed until the data lies on the disk.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from minitron_nas.architecture.config import architecture_of
from minitron_nas.families.catalog import layout_of
from minitron_nas.storage.weights import INDEX, safetensors_header
from minitron_nas.testing import tiny_tokenizer

LLAMA_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
SHAPE = "hidden_size=3072,intermediate_size=9216"
NEEDED_BYTES = 45e9
SHARD_BYTES = 5e9
ROUNDS = 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_pruning_eight_billion_parameters_costs_little_more_than_copying_them(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES / 1e9:.0f} GB of disk")
    teacher = write_teacher(tmp_path / "teacher")
    num_bytes = sum(file.stat().st_size for file in teacher.iterdir())
    ratios, peaks = [], []
    for number in range(ROUNDS):
        copied = timed(["cp", "-r", str(teacher), str(tmp_path / "copy")], teacher)[0]
        shutil.rmtree(tmp_path / "copy")
        command = ["prune", str(teacher), "--shape", SHAPE, "--scores", "random", "--out", str(tmp_path / "student")]
        pruned, peak = timed([sys.executable, "-m", "minitron_nas", *command], teacher)
        assert json.loads((tmp_path / "student" / "config.json").read_text())["hidden_size"] == 3072
        shutil.rmtree(tmp_path / "student")
        ratios.append(pruned / copied)
        peaks.append(peak)
        print(
            f"round {number + 1}: {num_bytes / 1e9:.1f} GB; cp -r {copied:.1f} s; prune {pruned:.1f} s, "
            f"{pruned / copied:.2f} times as long; peak resident {peak / 1e9:.2f} GB"
        )
    assert max(peaks) <= 3e9
    assert statistics.median(ratios) <= 1.5


def write_teacher(folder: Path, num_hidden_layers: int = 32) -> Path:
    """Write random bfloat16 weights of Llama-3.1-8B's shapes, a few megabytes at a time."""
    folder.mkdir()
    layout = layout_of("llama")
    changed = {**LLAMA_8B, "num_hidden_layers": num_hidden_layers}
    config = AutoConfig.for_model(**changed)
    shapes = [
        (place.name, place.row.shape(architecture_of(config.to_dict(), layout)))
        for place in layout.tensors(architecture_of(config.to_dict(), layout))
    ]
    numbers = torch.randn(1 << 25, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    data = numbers.view(torch.int16).numpy().tobytes()
    shards: list[list[tuple[str, tuple[int, ...], int]]] = [[]]
    filled = 0.0
    for name, shape in shapes:
        size = 2 * int(torch.Size(shape).numel())
        if filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape, size))
        filled += size
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with file.open("wb") as handle:
            handle.write(safetensors_header((name, "BF16", shape, size) for name, shape, size in shard))
            for name, _, size in shard:
                weight_map[name] = file.name
                for start in range(0, size, len(data)):
                    handle.write(data[: size - start])
            handle.flush()
            os.fsync(handle.fileno())
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(changed))
    tiny_tokenizer().save_pretrained(folder)
    return folder


def timed(command: list[str], source: Path) -> tuple[float, int]:
    """Run a command with a cold cache of `source` until all is on the disk; return seconds and peak bytes."""
    for file in source.iterdir():
        with file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, resident_peak(process.pid))
            time.sleep(0.05)
    os.sync()
    assert process.returncode == 0
    return time.perf_counter() - start, peak


def resident_peak(pid: int) -> int:
    """Return the greatest resident set of a process so far, in bytes; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
