"""The loss against hand-computed numbers, torch's own functions and plain autograd."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils._python_dispatch import TorchDispatchMode

from minitron_nas.distillation import losses
from minitron_nas.distillation.head import OutputHead
from minitron_nas.distillation.losses import IGNORE_LABEL, LossSums, forward_kl
from minitron_nas.distillation.targets import HiddenTargets, TopKTargets

CHUNK = 256


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def distillation_loss(hidden, weight, labels, teacher_hidden, teacher_weight, lm_loss_weight):
    targets = HiddenTargets(teacher_hidden, OutputHead(teacher_weight))
    return losses.distillation_loss(hidden, OutputHead(weight), labels, targets, lm_loss_weight)


def some_labels(num_tokens, vocab_size, ignored_fraction=0.3):
    generator = torch.Generator().manual_seed(9)
    labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
    ignored = torch.rand(num_tokens, generator=generator) < ignored_fraction
    return labels.masked_fill(ignored, IGNORE_LABEL)


def plain_kl(logits, teacher_logits):
    student, teacher = log_softmax(logits, dim=-1), log_softmax(teacher_logits, dim=-1)
    return kl_div(student, teacher, reduction="sum", log_target=True) / len(logits)


def plain_loss(hidden, head, labels, teacher_hidden, teacher_head, lm_loss_weight):
    logits = hidden @ head.T
    loss = plain_kl(logits, teacher_hidden @ teacher_head.T)
    if (labels != IGNORE_LABEL).any():
        loss = loss + lm_loss_weight * cross_entropy(logits, labels, ignore_index=IGNORE_LABEL)
    return loss


def test_the_kl_of_a_distribution_to_itself_is_zero():
    logits = numbers(7, 11)
    assert forward_kl(logits, logits).tolist() == [0.0] * 7


def test_the_kl_of_a_half_and_two_quarters_to_a_uniform_third_is_half_the_log_of_nine_eighths():
    teacher = torch.tensor([[0.5, 0.25, 0.25]]).double().log() + 3.0  # a constant changes no softmax
    student = torch.zeros(1, 3).double()
    assert forward_kl(student, teacher).item() == pytest.approx(math.log(9 / 8) / 2, rel=1e-12)


def test_the_kl_is_that_of_torch_distributions():
    student, teacher = numbers(5, 13, seed=1), numbers(5, 13, seed=2)
    expected = kl_divergence(Categorical(logits=teacher), Categorical(logits=student))
    torch.testing.assert_close(forward_kl(student, teacher), expected)


def test_half_precision_logits_are_widened_before_the_softmax():
    student, teacher = (numbers(5, 13, seed=seed, dtype=torch.bfloat16) for seed in (1, 2))
    kl = forward_kl(student, teacher)
    assert kl.dtype == torch.float32
    assert torch.equal(kl, forward_kl(student.float(), teacher.float()))


@settings(max_examples=40)
@example(num_tokens=CHUNK, vocab_size=3, widths=(2, 3), ignored_fraction=1.0, lm_loss_weight=0.5)
@given(
    num_tokens=st.sampled_from((1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1)),
    vocab_size=st.integers(2, 30),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    ignored_fraction=st.sampled_from((0.0, 0.3, 1.0)),
    lm_loss_weight=st.sampled_from((0.0, 0.25, 1.0, 3.0)),
)
def test_value_and_gradients_are_those_of_the_plain_formula(
    num_tokens, vocab_size, widths, ignored_fraction, lm_loss_weight
):
    hidden, head = numbers(num_tokens, widths[0], seed=1), numbers(vocab_size, widths[0], seed=2)
    teacher = numbers(num_tokens, widths[1], seed=3), numbers(vocab_size, widths[1], seed=4)
    labels = some_labels(num_tokens, vocab_size, ignored_fraction)
    gradients = []
    for function in (distillation_loss, plain_loss):
        inputs = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        loss = function(*inputs, labels, *teacher, lm_loss_weight)
        (3 * loss).backward()
        gradients.append((loss.detach(), inputs[0].grad, inputs[1].grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


@settings(max_examples=20)
@given(
    num_tokens=st.sampled_from((1, CHUNK, CHUNK + 1)),
    vocab_size=st.integers(2, 30),
    fraction=st.floats(0, 1),
    lm_loss_weight=st.sampled_from((0.0, 0.5)),
)
def test_of_the_most_probable_tokens_both_sides_are_renormalised(num_tokens, vocab_size, fraction, lm_loss_weight):
    hidden, head = numbers(num_tokens, 4, seed=1), numbers(vocab_size, 4, seed=2)
    teacher, labels = log_softmax(numbers(num_tokens, vocab_size, seed=3), dim=-1), some_labels(num_tokens, vocab_size)
    targets = TopKTargets(*teacher.topk(1 + round(fraction * (vocab_size - 1))))

    def chunked(hidden, head):
        return losses.distillation_loss(hidden, OutputHead(head), labels, targets, lm_loss_weight)

    def plain(hidden, head):
        logits = hidden @ head.T
        lm = cross_entropy(logits, labels, ignore_index=IGNORE_LABEL) if (labels != IGNORE_LABEL).any() else 0.0
        return plain_kl(logits.gather(-1, targets.indices), targets.log_probs) + lm_loss_weight * lm

    gradients = []
    for function in (chunked, plain):
        inputs = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        loss = function(*inputs)
        loss.backward()
        gradients.append((loss.detach(), inputs[0].grad, inputs[1].grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_a_whole_vocabulary_of_most_probable_tokens_is_the_full_distribution():
    hidden, head, labels = numbers(CHUNK + 9, 4, seed=1), numbers(20, 4, seed=2), some_labels(CHUNK + 9, 20)
    full = HiddenTargets(numbers(CHUNK + 9, 3, seed=3), OutputHead(numbers(20, 3, seed=4)))
    gradients = []
    for targets in (full, TopKTargets(*log_softmax(full.logits(slice(None)), dim=-1).topk(20))):
        inputs = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        loss = losses.distillation_loss(inputs[0], OutputHead(inputs[1]), labels, targets, 0.5)
        loss.backward()
        gradients.append((loss.detach(), inputs[0].grad, inputs[1].grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)


def test_a_tied_head_gets_the_gradients_of_both_its_uses():
    ids, labels = torch.arange(12) % 5, some_labels(12, 5)
    teacher = numbers(12, 4, seed=3), numbers(5, 4, seed=4)
    gradients = []
    for function in (distillation_loss, plain_loss):
        embedding = numbers(5, 3).requires_grad_()
        function(embedding[ids].tanh(), embedding, labels, *teacher, 0.5).backward()
        gradients.append(embedding.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("student_dtype", [torch.float32, torch.bfloat16])
def test_a_bfloat16_teacher_gives_gradients_in_the_students_dtype_that_agree_within_rounding(student_dtype):
    hidden, head = numbers(300, 16, seed=1, dtype=student_dtype), numbers(40, 16, seed=2, dtype=student_dtype)
    teacher = numbers(300, 8, seed=3).bfloat16(), numbers(40, 8, seed=4).bfloat16()
    labels = some_labels(300, 40)
    inputs = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    loss = distillation_loss(*inputs, labels, *teacher, 0.5)
    loss.backward()

    wide = hidden.double().requires_grad_(), head.double().requires_grad_()
    expected = plain_loss(*wide, labels, *(tensor.double() for tensor in teacher), 0.5)
    expected.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)
    for got, exact in zip(inputs, wide, strict=True):
        assert got.grad.dtype == student_dtype
        assert (got.grad.double() - exact.grad).norm() < 1e-2 * exact.grad.norm()


def test_logits_exist_for_one_chunk_of_tokens_at_a_time():
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(part.numel() for part in (result,) if isinstance(part, torch.Tensor))
            return result

    vocab_size = 50
    hidden, head = numbers(4 * CHUNK, 3).requires_grad_(), numbers(vocab_size, 3).requires_grad_()
    with Watch():
        labels = some_labels(4 * CHUNK, vocab_size)
        loss = distillation_loss(hidden, head, labels, numbers(4 * CHUNK, 2), numbers(vocab_size, 2), 1.0)
        loss.backward()
    assert max(sizes) == CHUNK * vocab_size


def test_sums_over_batches_are_those_of_the_whole():
    hidden, head, labels = numbers(2 * CHUNK + 9, 4), numbers(20, 4, seed=1), some_labels(2 * CHUNK + 9, 20)
    teacher_hidden, teacher_head = numbers(len(hidden), 3, seed=2), numbers(20, 3, seed=3)
    sums = LossSums()
    for start, end in ((0, 1), (1, CHUNK + 5), (CHUNK + 5, len(hidden))):
        rows = slice(start, end)
        targets = HiddenTargets(teacher_hidden[rows], OutputHead(teacher_head))
        sums.add(hidden[rows], OutputHead(head), labels[rows], targets)
    losses = sums.means()
    logits = hidden @ head.T
    assert losses.num_tokens == len(hidden)
    assert losses.kl_nats == pytest.approx(plain_kl(logits, teacher_hidden @ teacher_head.T).item(), rel=1e-9)
    expected = cross_entropy(logits, labels, ignore_index=IGNORE_LABEL).item()
    assert losses.loss_nats == pytest.approx(expected, rel=1e-9)


def test_without_a_teacher_there_is_no_kl_and_the_labels_are_counted():
    sums = LossSums()
    labels = torch.tensor([1, IGNORE_LABEL, 0])
    sums.add(torch.zeros(3, 2), OutputHead(torch.zeros(4, 2)), labels)
    losses = sums.means()
    assert math.isnan(losses.kl_nats)
    assert losses.loss_nats == pytest.approx(math.log(4), rel=1e-6)
    assert losses.num_tokens == 2


def test_sums_of_nothing_have_no_means():
    losses = LossSums().means()
    assert (math.isnan(losses.kl_nats), math.isnan(losses.loss_nats), losses.num_tokens) == (True, True, 0)
