"""A compiled chunk is the chunk as written."""

from dataclasses import replace

import pytest
import torch

from minitron_nas.distillation.loss import chunks
from minitron_nas.distillation.loss.chunks import Terms, Workspace, chunk_loss
from minitron_nas.distillation.loss.losses import LossSums
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets
from minitron_nas.distillation.signals.top_k_cache import most_probable

pytestmark = pytest.mark.usefixtures("compiler")

VOCAB_SIZE = 61
PLAIN = {"scaling": 1.0, "softcap": None}
CAPPED = {"scaling": 2.0, "softcap": 3.0, "bias": torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(5))}
CASES = {
    "forward KL": (PLAIN, {}),
    "reverse KL beside the next-token loss, capped logits": (CAPPED, {"loss": "reverse_kl", "lm_loss_weight": 0.5}),
    "generalised Jensen-Shannon, of seven tokens and the rest": (PLAIN, {"loss": "jsd", "jsd_beta": 0.3, "top_k": 7}),
    "cosine, warm": (CAPPED, {"loss": "cosine", "temperature": 2.0}),
    "next-token loss": (PLAIN, {"loss": "lm"}),
    "top-K cache": (PLAIN, {"teacher_signal": "top_k"}),
}
ALWAYS = ("forward KL", "top-K cache")
"""What is compiled whenever tests run; the others take as long each."""


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore:top_k=7")
@pytest.mark.parametrize(
    "case", [case if case in ALWAYS else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_compiled_chunk_has_the_loss_and_the_gradients_of_the_written_one(case, monkeypatch):
    form, given = CASES[case]
    settings = DistillationSettings(**given)
    head = OutputHead(numbers(VOCAB_SIZE, 8, seed=1), **form)
    targets = HiddenTargets(numbers(20, 6, seed=2), OutputHead(numbers(VOCAB_SIZE + 3, 6, seed=3)))
    if settings.cached_top_k:
        targets = most_probable(targets, 20, 9)
    labels = torch.arange(20) % VOCAB_SIZE
    terms = Terms(targets if settings.asks_teacher else None, torch.full((20,), 0.05), labels, torch.rand(20))
    written_in, compiled_in = (Workspace(20, head, targets) for _ in range(2))
    for rows in (slice(0, 16), slice(16, 20)):  # the last chunk is a smaller one
        hidden = numbers(20, 8, seed=4)[rows]
        written = chunk_loss(hidden, head, terms.of(rows), settings, written_in)
        with monkeypatch.context() as patch:
            patch.setattr(chunks, "_COMPILED_FROM", 0)
            patch.setattr(chunks, "_loss_of_products", None)
            compiled = chunk_loss(hidden, head, terms.of(rows), settings, compiled_in)
        torch.testing.assert_close(compiled, written, rtol=1e-4, atol=1e-6)


def test_compiled_sums_of_a_validation_are_those_of_the_written_ones(monkeypatch):
    hidden, head, labels = numbers(20, 8, seed=1), OutputHead(numbers(31, 8, seed=2)), torch.arange(20) % 31
    labels[3] = -100
    targets = HiddenTargets(numbers(20, 6, seed=3), OutputHead(numbers(29, 6, seed=4)))
    found = []
    for least in (chunks._COMPILED_FROM, 0):
        monkeypatch.setattr(chunks, "_COMPILED_FROM", least)
        sums = LossSums()
        sums.add(hidden, head, labels, targets)
        found.append(sums.means())
    assert found[1].kl_nats == pytest.approx(found[0].kl_nats, rel=1e-5)
    assert found[1].loss_nats == pytest.approx(found[0].loss_nats, rel=1e-5)
    assert replace(found[1], kl_nats=0.0, loss_nats=0.0) == replace(found[0], kl_nats=0.0, loss_nats=0.0)
