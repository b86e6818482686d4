"""What scoring every part of SmolLM2 costs beside plain forward passes over the same text."""

import statistics
import time
from pathlib import Path

import pytest
import torch

from minitron_nas.distillation.signals.teacher import final_hidden
from minitron_nas.importance.score import score_importance
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.models.loading import load_for_inference
from minitron_nas.models.source import demo_teacher
from minitron_nas.text.tokens import PackedTokens

ROUNDS = 3
TEXT = PackedTokens(
    torch.randint(0, 49152, (8, 1024), generator=torch.Generator().manual_seed(0)), torch.arange(1024).expand(8, 1024)
)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1200)
def test_scoring_costs_little_more_than_running_the_model(tmp_path: Path) -> None:
    checkpoint, _ = demo_teacher(tmp_path)
    model = load_for_inference(checkpoint.path)

    @torch.no_grad()
    def plain() -> None:
        for _, batch in TEXT.batches(4):
            final_hidden(model, batch.input_ids, batch.position_ids)

    def scored() -> None:
        score_importance(model, checkpoint.architecture, checkpoint.layout, TEXT, ImportanceSettings())

    seconds: dict[str, list[float]] = {"plain": [], "scored": []}
    plain()
    for _ in range(ROUNDS):
        for name, run in (("plain", plain), ("scored", scored)):
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    ratio = statistics.median(s / p for s, p in zip(seconds["scored"], seconds["plain"], strict=True))
    print(f"\n{TEXT.num_tokens:,} tokens: {seconds}; scoring takes {ratio:.2f} times as long as the plain passes")
    assert ratio <= 1.3
