"""When Liger's kernel may be used, and that it computes what ours computes."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from minitron_nas.distillation.loss import liger, losses
from minitron_nas.distillation.loss.liger import fused_distance, has_kernel, is_exact
from minitron_nas.distillation.loss.losses import Counted, distillation_loss
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PLAIN = OutputHead(numbers(11, 5))
TARGETS = HiddenTargets(numbers(9, 4), OutputHead(numbers(11, 4)))
LABELS = torch.zeros(9, dtype=torch.long)


@pytest.mark.parametrize(
    ("device", "installed", "usable"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_the_kernel_needs_a_gpu_and_the_package(monkeypatch, device, installed, usable):
    monkeypatch.setattr(liger, "find_spec", lambda name: object() if installed else None)
    assert has_kernel(torch.device(device)) is usable


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "reverse_kl"},
        {"loss": "jsd", "jsd_beta": 0.3},
        {"temperature": 2.0},
    ],
    ids=str,
)
def test_divergences_of_plain_heads_are_what_the_kernel_computes(settings):
    assert is_exact(PLAIN, TARGETS, DistillationSettings(**settings))


@pytest.mark.parametrize("settings", [{"loss": "mse"}, {"loss": "cosine"}, {"lm_loss_weight": 0.1}, {"top_k": 200}])
def test_other_losses_are_not(settings):
    assert not is_exact(PLAIN, TARGETS, DistillationSettings(**settings))


@pytest.mark.parametrize(
    "change", [{"scaling": 4.0}, {"softcap": 30.0}, {"bias": numbers(11)}], ids=lambda c: next(iter(c))
)
def test_heads_that_do_more_than_multiply_are_not(change):
    assert not is_exact(replace(PLAIN, **change), TARGETS, DistillationSettings())
    targets = replace(TARGETS, head=replace(TARGETS.head, **change))
    assert not is_exact(PLAIN, targets, DistillationSettings())


def test_float64_is_not():
    assert not is_exact(PLAIN.detached(torch.float64), TARGETS, DistillationSettings())


@pytest.fixture
def kernel(monkeypatch):
    """Stand in for Liger with a formula of its interface: mean KL of plain products, and note its arguments."""
    calls = []

    class LigerFusedLinearJSD:
        def __init__(self, **options):
            calls.append(options)

        def __call__(self, hidden, weight, teacher_hidden, teacher_weight, shift_labels):
            assert shift_labels is None
            return losses.forward_kl(hidden @ weight.T, teacher_hidden @ teacher_weight.T).mean()

    package = ModuleType("liger_kernel.transformers")
    package.LigerFusedLinearJSD = LigerFusedLinearJSD
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    monkeypatch.setattr(losses, "has_kernel", lambda device: True)
    return calls


def test_the_loss_goes_through_the_kernel_where_it_is_exact_with_padding_cut(kernel):
    padded = replace(TARGETS, head=OutputHead(torch.cat([TARGETS.head.weight, numbers(2, 4, seed=8)])))
    hidden, settings = numbers(9, 5, seed=1).requires_grad_(), DistillationSettings(temperature=1.0)
    got = distillation_loss(hidden, PLAIN, Counted(LABELS), padded, settings)
    expected = losses.forward_kl(PLAIN.logits(hidden), TARGETS.logits()).mean()
    assert kernel == [{"jsd_beta": 0.0, "temperature": 1.0, "accum_dtype": torch.float32}]
    torch.testing.assert_close((got.total, got.distance), (expected, expected))
    assert (got.total.requires_grad, got.distance.requires_grad) == (True, False)


def test_the_loss_goes_past_the_kernel_where_it_is_not_exact_or_tokens_are_left_out(kernel):
    hidden = numbers(9, 5, seed=1)
    distillation_loss(hidden, replace(PLAIN, softcap=30.0), Counted(LABELS), TARGETS, DistillationSettings())
    distillation_loss(hidden, PLAIN, Counted(LABELS, mask=torch.arange(9) > 3), TARGETS, DistillationSettings())
    distillation_loss(hidden, PLAIN, Counted(LABELS), None, DistillationSettings(loss="lm"))
    assert kernel == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Liger's kernel runs on a GPU only")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings", [{}, {"loss": "reverse_kl"}, {"loss": "jsd", "jsd_beta": 0.3}, {"temperature": 2.0}]
)
def test_the_kernel_gives_the_value_and_gradients_of_our_own_loss(settings, dtype):
    pytest.importorskip("liger_kernel")
    wanted, results = DistillationSettings(**settings), []
    for fused in (True, False):
        hidden = numbers(300, 64, seed=1).cuda().requires_grad_()
        weight = (numbers(1000, 64, seed=2) / 8).cuda().requires_grad_()
        targets = HiddenTargets(numbers(300, 32, seed=3).cuda(), OutputHead((numbers(1000, 32, seed=4) / 6).cuda()))
        if fused:
            loss = fused_distance(hidden, OutputHead(weight), targets, wanted, dtype)
        else:  # a mask of all tokens goes past the kernel
            mask = torch.ones(300, dtype=torch.bool, device="cuda")
            counted = Counted(torch.zeros(300, dtype=torch.long, device="cuda"), mask=mask)
            loss = distillation_loss(hidden, OutputHead(weight), counted, targets, wanted, dtype).total
        loss.backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
    allowed = 1e-4 if dtype == torch.float32 else 2e-2
    for got, expected in zip(*results, strict=True):
        assert (got - expected).norm() <= allowed * expected.norm()
