"""What the chunked loss saves: one KD step of a SmolLM2-shaped student, against full logits.

Both contenders read the teacher's states from memory and take the same step; each runs in a process
of its own, in turns, so that peak memory is its own and noise hits both alike. The figures go to
`reports/benchmarks.md`. Run with `pytest -m slow -s tests/benchmarks/test_distillation_step.py`.
"""

import json
import statistics
import subprocess
import sys

import pytest

ROUNDS = 3

STEP = """
import json, sys, time
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from minitron_nas.distillation.head import OutputHead
from minitron_nas.distillation.losses import distillation_loss, forward_kl
from minitron_nas.distillation.targets import HiddenTargets

torch.manual_seed(0)
torch.set_num_threads(2)
config = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1024, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, head_dim=64, tie_word_embeddings=True,
)
student = LlamaForCausalLM(config)
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
ids = torch.randint(config.vocab_size, (4, 512))
labels = torch.roll(ids, -1, dims=1).flatten()
dtype = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
teacher_hidden = torch.randn(ids.numel(), 576, dtype=dtype)
teacher_head = torch.randn(config.vocab_size, 576, dtype=dtype) / 24


def step() -> None:
    with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
        hidden = student.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        if sys.argv[1] == "full":
            logits = student.lm_head(hidden)
            loss = forward_kl(logits, teacher_hidden @ teacher_head.T).mean()
    if sys.argv[1] == "chunked":
        targets = HiddenTargets(teacher_hidden, OutputHead(teacher_head))
        loss = distillation_loss(hidden, OutputHead.of(student), labels, targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


step()
started = time.perf_counter()
for _ in range(3):
    step()
seconds = (time.perf_counter() - started) / 3
line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
peak = int(line.split()[1]) * 1024
# Weights, gradients and Adam's two moments, all float32: what both contenders must hold.
own = sum(p.numel() for p in student.parameters()) * 16
print(json.dumps({"tokens_per_second": ids.numel() / seconds, "peak_bytes": peak, "above_own_bytes": peak - own}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_chunked_loss_needs_less_memory_than_full_logits() -> None:
    """Print tokens per second and peak memory of both; the memory is what must hold."""
    runs: dict[str, list[dict[str, float]]] = {"chunked": [], "full": []}
    for _ in range(ROUNDS):
        for contender, results in runs.items():
            output = subprocess.run([sys.executable, "-c", STEP, contender], capture_output=True, text=True, check=True)
            results.append(json.loads(output.stdout.strip().splitlines()[-1]))
    median = {
        name: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for name, results in runs.items()
    }
    for name, figures in median.items():
        print(
            f"{name:<8} {figures['tokens_per_second']:7.1f} tokens/s   peak {figures['peak_bytes'] / 2**30:.2f} GiB, "
            f"{figures['above_own_bytes'] / 2**30:.2f} GiB above weights, gradients and optimizer"
        )
    assert median["chunked"]["above_own_bytes"] < 0.7 * median["full"]["above_own_bytes"]
