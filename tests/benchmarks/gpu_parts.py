"""Two parts of distillation on one GPU: the loss by how many tokens it multiplies at once, and packed attention.

`python tests/benchmarks/gpu_parts.py` needs torch, transformers and this package, and a minute; all numbers are random.
`--tiny` is for a CPU. Milliseconds are medians of forward and backward passes, memory the most that tensors took beside
what was there before.

The loss is that of 8,192 tokens over 128,256 entries, teacher's hidden size 4096: forward KL by our chunks, and by
Liger's fused kernel where `liger_kernel` is installed. Attention is that of four layers of a 1.7B student, layers as
written and compiled, over documents that are packed: through transformers' mask, by FlexAttention, and by document.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from unittest.mock import patch

import torch
from gpu_device import DEVICE
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from minitron_nas.distillation.loss import chunks
from minitron_nas.distillation.loss.losses import Counted, distillation_loss
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets
from minitron_nas.distillation.signals.teacher import final_hidden
from minitron_nas.models.attention import attend_by_document
from minitron_nas.models.causal_lm import CausalLM

IS_GPU = DEVICE.type == "cuda"
WARM, TIMES = 2, 5


def measured(work: Callable[[], object]) -> str:
    """Return median milliseconds and peak memory of some work."""
    for _ in range(WARM):
        work()
    if IS_GPU:
        torch.cuda.reset_peak_memory_stats()
    before, seconds = torch.cuda.memory_allocated() if IS_GPU else 0, []
    for _ in range(TIMES):
        begun = time.perf_counter()
        work()
        if IS_GPU:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if IS_GPU else 0
    return f"{1000 * statistics.median(seconds):.1f} ms, {peak:.2f} GiB"


@dataclass
class Loss:
    """A batch of which the loss is taken.

    Attributes:
        student: (num_tokens, hidden_size) and (vocab_size, hidden_size): hidden states and head.
        targets: What the teacher says.
    """

    student: tuple[Tensor, Tensor]
    targets: HiddenTargets

    @classmethod
    def random(cls, num_tokens: int, vocab_size: int, hidden_size: int, teacher_size: int) -> "Loss":
        student, teacher = (
            (torch.randn(num_tokens, size, device=DEVICE), torch.randn(vocab_size, size, device=DEVICE) / 50)
            for size in (hidden_size, teacher_size)
        )
        states, head = (side.bfloat16() for side in teacher)
        return cls((student[0].requires_grad_(), student[1].requires_grad_()), HiddenTargets(states, OutputHead(head)))

    def ours(self) -> None:
        hidden, weight = self.student
        counted = Counted(torch.zeros(len(hidden), dtype=torch.long, device=DEVICE))
        settings = DistillationSettings()
        loss = distillation_loss(hidden, OutputHead(weight), counted, self.targets, settings, torch.bfloat16)
        loss.total.backward()

    def liger(self) -> None:
        from liger_kernel.transformers import LigerFusedLinearJSD

        kernel = LigerFusedLinearJSD(jsd_beta=0.0, accum_dtype=torch.float32)
        sides = (*(side.bfloat16() for side in self.student), self.targets.hidden, self.targets.head.weight)
        kernel(*sides, None).backward()


def losses(
    num_tokens: int, vocab_size: int, teacher_size: int, sizes: tuple[int, ...], at_once: tuple[int, ...]
) -> None:
    """Print what the loss takes, for students of some hidden sizes."""
    for size in sizes:
        loss = Loss.random(num_tokens, vocab_size, size, teacher_size)
        for number in at_once:
            with patch.object(chunks, "_chunk_tokens", lambda head, number=number: number):
                print(f"loss, hidden size {size}, {number} tokens at once: {measured(loss.ours)}")
        print(f"loss, hidden size {size}, as many as the product takes: {measured(loss.ours)}")
        if IS_GPU and find_spec("liger_kernel"):
            print(f"loss, hidden size {size}, Liger: {measured(loss.liger)}")


def packed(batch: int, length: int, mean: int) -> Iterator[Tensor]:
    """Yield positions of rows of documents, which have a quarter to twice a mean length."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(batch):
        row: list[Tensor] = []
        while missing := length - sum(map(len, row)):
            row.append(torch.arange(min(missing, int(torch.randint(mean // 4, 2 * mean, (1,), generator=generator)))))
        yield torch.cat(row)


def attention(config: LlamaConfig, batches: tuple[tuple[int, int, int], ...]) -> None:
    """Print what layers take, for batches of packed documents."""
    for batch in batches:
        positions = torch.stack(list(packed(*batch))).to(DEVICE)
        ids, num_documents = torch.zeros_like(positions), int((positions == 0).sum())
        for kind, compiled in product(("sdpa", "flex_attention", "by document"), (False, True)):
            if kind == "flex_attention" and not IS_GPU:  # it has no backward pass there
                continue
            torch._dynamo.reset()
            work = partial(train, layers(config, kind, compiled), ids, positions)
            about = f"{batch[0]} x {batch[1]}, {num_documents} documents, {kind}{', compiled' if compiled else ''}"
            print(f"attention, {about}: {measured(work)}")


def train(model: CausalLM, ids: Tensor, positions: Tensor) -> None:
    """Pass forward and backward, in half precision."""
    with torch.autocast(DEVICE.type, torch.bfloat16):
        hidden = final_hidden(model, ids, positions)
    hidden.float().sum().backward()


def layers(config: LlamaConfig, kind: str, compiled: bool) -> CausalLM:
    """Return a model that attends in some way."""
    with DEVICE:
        model: CausalLM = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa" if kind == "by document" else kind, dtype=torch.float32
        )
    if kind == "by document":
        attend_by_document(model)
    if compiled:
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    return model.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a CPU")
    is_tiny = parser.parse_args().tiny
    if is_tiny:
        losses(600, 500, 32, (24,), (256, 512))
    else:
        losses(8192, 128256, 4096, (1024, 3072), (512, 1024, 2048, 4096, 8192))
    hidden, neurons, heads = (32, 48, 4) if is_tiny else (2048, 7680, 16)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=neurons,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        vocab_size=512,
        max_position_embeddings=16384,
    )
    attention(config, ((2, 64, 16),) if is_tiny else ((4, 2048, 400), (1, 16384, 800)))


if __name__ == "__main__":
    main()
