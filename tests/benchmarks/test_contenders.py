"""Distilling SmolLM2 into a student with FFN 1024: our loop against those that people write and TRL's.

Run with `pytest -m slow -s tests/benchmarks/test_contenders.py`; TRL is not among our dependencies (`pip install trl`).
"""

import json
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron_nas.execution.device import compute_dtype
from minitron_nas.models.source import demo_teacher

SCRIPT = Path(__file__).with_name("contenders.py")
OTHERS = ("plain loop", "Trainer", "TRL GKDTrainer", "TRL's chunked kernel")
OURS = ("ours, online", "ours, cached", "ours, cached, layers compiled")
ROUNDS = 2
LAYERS, WIDTH, VOCAB_SIZE, LENGTH = 30, 576, 49152, 512
DTYPE = compute_dtype(torch.device("cpu"))
BODY = {"teacher": 106_203_456, "student": 79_661_376}
"""Weights of the layers, that every token goes through once."""


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(3600)
@pytest.mark.skipif(find_spec("trl") is None, reason="pip install trl, which this compares with")
def test_a_cached_teacher_makes_half_as_many_tokens_again_as_the_fastest_contender(tmp_path: Path) -> None:
    teacher, _ = demo_teacher(tmp_path)
    run("write cache", teacher.path, tmp_path / "work")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in (*OTHERS, *OURS)}
    rates = []
    for number in range(ROUNDS):
        rates.append(matrix_rate())
        for name, results in found.items():
            results.append(json.loads(run(name, teacher.path, tmp_path / f"{number} {name}")))
    rate = statistics.median(rates)
    print(f"\n{'':32}  tokens/s  peak GiB  above own GiB  of the limit at {rate / 1e9:.0f} GFLOP/s")
    speed, above = {}, {}
    for name, results in found.items():
        speed[name] = statistics.median(result["tokens_per_second"] for result in results)
        peak = statistics.median(result["peak_bytes"] for result in results)
        above[name] = peak - own_bytes(name, results[0]["student_parameters"])
        limit = rate / flops_per_token("cached" in name)
        print(
            f"{name:32}  {speed[name]:8.1f}  {peak / 2**30:8.2f}  {above[name] / 2**30:13.2f}  "
            f"{speed[name] / limit:.2f} of {limit:.0f} tokens/s"
        )
    best = max(OTHERS, key=lambda name: speed[name])
    assert speed["ours, online"] >= speed[best]
    assert speed["ours, cached"] >= 1.5 * speed[best]
    assert above["ours, cached, layers compiled"] <= 0.5 * above[best]


def run(name: str, teacher: Path, folder: Path) -> str:
    command = [sys.executable, str(SCRIPT), name, str(teacher), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1] if done.stdout else ""


def own_bytes(name: str, student_parameters: int) -> int:
    """What no loop can do without: the student's weights, gradients and Adam's moments, and the teacher's weights."""
    teacher = VOCAB_SIZE * WIDTH + (0 if "cached" in name else BODY["teacher"])
    return student_parameters * 16 + teacher * DTYPE.itemsize


def flops_per_token(teacher_is_cached: bool) -> float:
    """Operations of the matrix products: forward and twice as many backward, attention over half of the square."""
    attention = LAYERS * 4 * WIDTH * LENGTH / 2
    head = 2 * VOCAB_SIZE * WIDTH
    student = 3 * (2 * BODY["student"] + attention + head)
    return student + head + (0 if teacher_is_cached else 2 * BODY["teacher"] + attention)


def matrix_rate(size: int = 2048, times: int = 5) -> float:
    """Operations a second of a large matrix product."""
    one, other = (torch.randn(size, size).to(DTYPE) for _ in range(2))
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def test_the_sizes_are_those_of_the_models() -> None:
    """Hidden 576, 9 heads and 3 groups of 64, FFN 1536 or 1024, 30 layers with two norms and one at the end."""
    attention = 2 * 576 * 576 + 2 * 576 * 192
    for name, neurons in (("teacher", 1536), ("student", 1024)):
        assert BODY[name] == 30 * (attention + 3 * 576 * neurons + 2 * 576) + 576
