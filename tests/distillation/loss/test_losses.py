"""The loss against hand-computed numbers, torch's own functions and plain autograd."""

import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, log_softmax, softmax
from torch.utils._python_dispatch import TorchDispatchMode

from minitron_nas.distillation.loss import chunks
from minitron_nas.distillation.loss.losses import Counted, DistillationLoss, LossSums, distillation_loss, forward_kl
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets, TopKTargets
from minitron_nas.text.tokens import IGNORE_LABEL

CHUNK = chunks._CHUNK_TOKENS


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def some_labels(num_tokens, vocab_size, ignored_fraction=0.3):
    generator = torch.Generator().manual_seed(9)
    labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
    ignored = torch.rand(num_tokens, generator=generator) < ignored_fraction
    return labels.masked_fill(ignored, IGNORE_LABEL)


def plain_kl(logits, teacher_logits):
    student, teacher = log_softmax(logits, dim=-1), log_softmax(teacher_logits, dim=-1)
    return kl_div(student, teacher, reduction="sum", log_target=True) / len(logits)


def plain_head(hidden, head):
    """A head's logits, as its docstring says."""
    logits = hidden @ head.weight.T
    logits = (logits if head.bias is None else logits + head.bias) / head.scaling
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def plain_loss(hidden, head, labels, targets, settings, mask=None):
    """The loss by whole logits, autograd and torch's own functions."""
    logits = plain_head(hidden, head)
    mask = torch.ones(len(hidden), dtype=torch.bool) if mask is None else mask
    if isinstance(targets, HiddenTargets):
        teacher = plain_head(targets.hidden, targets.head)
        logits, teacher = (side[:, : min(logits.shape[1], teacher.shape[1])] for side in (logits, teacher))
    labels = labels.masked_fill(~mask, IGNORE_LABEL)
    lm_loss = cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="sum")
    lm_loss = lm_loss / max((labels != IGNORE_LABEL).sum(), 1)
    if targets is None:
        return lm_loss
    student = logits
    if isinstance(targets, TopKTargets):
        student, teacher = coarse(logits, targets.indices), torch.cat([targets.log_probs, targets.rest[:, None]], dim=1)
        teacher = teacher[:, : student.shape[1]]
    elif settings.top_k is not None:
        best = teacher.argsort(dim=1, descending=True)[:, : settings.top_k]
        student, teacher = coarse(logits, best), coarse(teacher, best)
    values = plain_distance(settings, student / settings.temperature, teacher / settings.temperature)
    return values[mask].sum() / max(mask.sum(), 1) + settings.lm_loss_weight * lm_loss


def coarse(logits, kept):
    """Logits of some tokens, and behind them the one that all others have together, if there are any."""
    others = torch.ones_like(logits).scatter(1, kept, 0)
    together = (logits.exp() * others).sum(dim=1, keepdim=True).log()
    return torch.cat([logits.gather(1, kept), *([together] if kept.shape[1] < logits.shape[1] else [])], dim=1)


def top_tokens(logits, k):
    probs, indices = softmax(logits, dim=-1).topk(k)
    rest = 1 - probs.sum(dim=1) if k < logits.shape[1] else torch.zeros(len(logits)).double()
    return TopKTargets(probs.log(), rest.log(), indices, logits.shape[1])


def plain_distance(settings, student, teacher):
    probs, target = softmax(student, dim=-1), softmax(teacher, dim=-1)
    mixture = settings.jsd_beta * target + (1 - settings.jsd_beta) * probs
    return {
        "forward_kl": lambda: sum_kl(target, probs),
        "reverse_kl": lambda: sum_kl(probs, target),
        "jsd": lambda: settings.jsd_beta * sum_kl(target, mixture) + (1 - settings.jsd_beta) * sum_kl(probs, mixture),
        "mse": lambda: (probs - target).square().sum(dim=-1),
        "cosine": lambda: 1 - cosine_similarity(probs, target, dim=-1),
    }[settings.loss]()


def sum_kl(one, other):
    return (one * (one.log() - other.log())).sum(dim=-1)


def some_targets(num_tokens, vocab_size, width=4, **head):
    return HiddenTargets(numbers(num_tokens, width, seed=3), OutputHead(numbers(vocab_size, width, seed=4), **head))


def value_and_gradients(function, hidden, head, *others, **options):
    """The value, and the gradients of three times it with respect to hidden states, weight and bias."""
    inputs = [part.clone().requires_grad_() for part in (hidden, head.weight)]
    bias = None if head.bias is None else head.bias.clone().requires_grad_()
    loss = function(inputs[0], replace(head, weight=inputs[1], bias=bias), *others, **options)
    total = loss.total if isinstance(loss, DistillationLoss) else loss
    (3 * total).backward()
    return [total.detach(), *(part.grad for part in inputs), *([] if bias is None else [bias.grad])]


def assert_plain(hidden, head, labels, targets, settings, mask=None, chunk=CHUNK):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_CHUNK_TOKENS", chunk)
        counted = Counted(labels, mask=mask)
        got = value_and_gradients(distillation_loss, hidden, head, counted, targets, settings)
    expected = value_and_gradients(plain_loss, hidden, head, labels, targets, settings, mask)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


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


heads = st.fixed_dictionaries(
    {"scaling": st.sampled_from((1.0, 4.0, 0.5)), "softcap": st.sampled_from((None, 2.0)), "biased": st.booleans()}
)


@settings(max_examples=400)
@given(
    num_tokens=st.integers(1, 9),
    chunk=st.integers(1, 10),
    vocab_sizes=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    heads=st.tuples(heads, heads),
    loss=st.sampled_from(("forward_kl", "reverse_kl", "jsd", "mse", "cosine", "lm")),
    jsd_beta=st.sampled_from((0.1, 0.5, 0.8)),
    temperature=st.sampled_from((1.0, 0.5, 3.0)),
    top_k=st.sampled_from((None, 1, 2, 5, 100)),
    lm_loss_weight=st.sampled_from((0.0, 0.25, 3.0)),
    masked_fraction=st.sampled_from((0.0, 0.4, 1.0)),
    ignored_fraction=st.sampled_from((0.0, 0.3, 1.0)),
)
def test_value_and_gradients_are_those_of_the_plain_formula_for_every_option(
    num_tokens, chunk, vocab_sizes, widths, heads, masked_fraction, ignored_fraction, top_k, loss, **options
):
    is_divergence = loss in ("forward_kl", "reverse_kl", "jsd")
    wanted = DistillationSettings(
        **{**options, "lm_loss_weight": 0.0 if loss == "lm" else options["lm_loss_weight"]}, loss=loss
    ).model_copy(update={"top_k": top_k if is_divergence else None})
    student, teacher = (
        OutputHead(
            numbers(size, width, seed=seed), head["scaling"], head["softcap"], numbers(size) if head["biased"] else None
        )
        for size, width, head, seed in zip(vocab_sizes, widths, heads, (2, 4), strict=True)
    )
    hidden = numbers(num_tokens, widths[0], seed=1)
    targets = HiddenTargets(numbers(num_tokens, widths[1], seed=3), teacher)
    labels = some_labels(num_tokens, min(vocab_sizes), ignored_fraction)
    mask = torch.rand(num_tokens, generator=torch.Generator().manual_seed(5)) >= masked_fraction
    assert_plain(hidden, student, labels, None if loss == "lm" else targets, wanted, mask, chunk)


@settings(max_examples=60)
@given(
    num_tokens=st.integers(1, 9),
    chunk=st.integers(1, 10),
    loss=st.sampled_from(("forward_kl", "reverse_kl", "jsd")),
    temperature=st.sampled_from((1.0, 0.5, 3.0)),
    stored=st.integers(1, 12),
    lm_loss_weight=st.sampled_from((0.0, 0.25)),
)
def test_stored_top_tokens_give_the_plain_formula_over_them(num_tokens, chunk, stored, **options):
    labels = some_labels(num_tokens, 12)
    hidden, head = numbers(num_tokens, 4, seed=1), OutputHead(numbers(12, 4, seed=2))
    targets = top_tokens(numbers(num_tokens, 12, seed=3), stored)
    assert_plain(hidden, head, labels, targets, DistillationSettings(**options), chunk=chunk)


@pytest.mark.parametrize("num_tokens", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1])
def test_chunks_of_the_real_size_add_up(num_tokens):
    hidden, head = numbers(num_tokens, 5, seed=1), OutputHead(numbers(11, 5, seed=2))
    labels = some_labels(num_tokens, 11)
    assert_plain(hidden, head, labels, some_targets(num_tokens, 11), DistillationSettings(lm_loss_weight=0.5))


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jsd"])
def test_all_tokens_as_the_top_ones_are_the_full_divergence(loss):
    hidden, head, labels = numbers(9, 4), OutputHead(numbers(13, 4, seed=1)), some_labels(9, 13)
    targets, wanted = some_targets(9, 13), DistillationSettings(loss=loss)
    full = value_and_gradients(distillation_loss, hidden, head, Counted(labels), targets, wanted)
    stored = top_tokens(targets.logits(), 13)
    got = value_and_gradients(distillation_loss, hidden, head, Counted(labels), stored, wanted)
    torch.testing.assert_close(got, full)


def test_the_top_token_alone_is_told_from_all_others():
    wanted = DistillationSettings().model_copy(update={"top_k": 1})
    hidden, head, labels = numbers(9, 4), OutputHead(numbers(13, 4, seed=1)), some_labels(9, 13)
    targets = some_targets(9, 13)
    teacher, student = (softmax(logits, dim=-1) for logits in (targets.logits(), hidden @ head.weight.T))
    best = teacher.argmax(dim=1, keepdim=True)
    one, other = (torch.cat([side.gather(1, best), 1 - side.gather(1, best)], dim=1) for side in (teacher, student))
    got = distillation_loss(hidden, head, Counted(labels), targets, wanted).total
    torch.testing.assert_close(got, sum_kl(one, other).mean())


def test_what_a_student_gives_to_other_tokens_counts():
    logits = torch.tensor([[3.0, 2.0, 0.0, 0.0, 0.0]]).double()
    stored, head = top_tokens(logits, 2), OutputHead(torch.eye(5).double())
    for others, least, most in ((0.0, 0.0, 0.0), (2.5, 0.4, 0.6), (-9.0, 0.7, 0.9)):
        student = torch.tensor([[3.0, 2.0, others, others, others]]).double()  # as sure of one of two as the teacher
        loss = distillation_loss(student, head, Counted(torch.tensor([0])), stored, DistillationSettings()).total.item()
        assert least <= round(loss, 12) <= most


@pytest.mark.parametrize(("larger", "stored"), [("student", None), ("teacher", None), ("student", 5)])
def test_padding_of_the_larger_vocabulary_changes_nothing_and_learns_nothing(larger, stored):
    hidden, weight, labels = numbers(9, 4), numbers(13, 4, seed=1), some_labels(9, 13)
    targets, wanted = some_targets(9, 13), DistillationSettings(lm_loss_weight=0.5)
    targets = targets if stored is None else top_tokens(targets.logits(), stored)
    expected = value_and_gradients(distillation_loss, hidden, OutputHead(weight), Counted(labels), targets, wanted)
    padding = numbers(3, 4, seed=8)
    if larger == "student":
        weight = torch.cat([weight, padding])
        expected[2] = torch.cat([expected[2], torch.zeros(3, 4).double()])
    else:
        targets = replace(targets, head=OutputHead(torch.cat([targets.head.weight, padding])))
    got = value_and_gradients(distillation_loss, hidden, OutputHead(weight), Counted(labels), targets, wanted)
    torch.testing.assert_close(got, expected)


def test_a_top_token_that_is_the_teachers_padding_counts_as_impossible():
    hidden, head, labels = numbers(4, 3), OutputHead(numbers(5, 3, seed=1)), some_labels(4, 5)
    log_probs = log_softmax(numbers(4, 3, seed=2), dim=-1)
    rest = torch.tensor([-1.0, -2.0, -3.0, -4.0]).double()
    with_padding = TopKTargets(log_probs, rest, torch.tensor([[6, 0, 1], [2, 9, 4], [0, 3, 5], [5, 4, 0]]), 10)
    got = value_and_gradients(distillation_loss, hidden, head, Counted(labels), with_padding, DistillationSettings())
    inside = with_padding.indices < 5
    kept = TopKTargets(log_probs[inside].view(4, 2), rest, with_padding.indices[inside].view(4, 2), 5)
    expected = value_and_gradients(distillation_loss, hidden, head, Counted(labels), kept, DistillationSettings())
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("loss", ["forward_kl", "lm"])
def test_parts_that_are_told_the_numbers_of_the_whole_average_to_it(loss):
    wanted = DistillationSettings(loss=loss, lm_loss_weight=0.5 if loss != "lm" else 0.0)
    hidden, head, targets = numbers(8, 4), OutputHead(numbers(13, 4, seed=1)), some_targets(8, 13)
    labels = torch.tensor([1, IGNORE_LABEL, IGNORE_LABEL, IGNORE_LABEL, 7, 2, 2, 9])
    mask = torch.tensor([True, True, True, False, True, True, False, True])
    expected = value_and_gradients(distillation_loss, hidden, head, Counted(labels, mask=mask), targets, wanted)
    halves = []
    for rows in (slice(0, 4), slice(4, 8)):
        part = replace(targets, hidden=targets.hidden[rows])
        counted = Counted(labels[rows], torch.tensor(4 / 2), mask[rows], 6 / 2)
        halves.append(value_and_gradients(distillation_loss, hidden[rows], head, counted, part, wanted))
    (total, states, weight), (other_total, other_states, other_weight) = halves
    got = [(total + other_total) / 2, torch.cat([states, other_states]) / 2, (weight + other_weight) / 2]
    torch.testing.assert_close(got, expected)


def test_the_distance_is_told_apart_from_the_next_token_loss_and_carries_no_gradient():
    hidden, head = numbers(9, 4).requires_grad_(), OutputHead(numbers(13, 4, seed=1))
    others = Counted(some_labels(9, 13)), some_targets(9, 13)
    both = distillation_loss(hidden, head, *others, DistillationSettings(lm_loss_weight=0.5))
    alone = distillation_loss(hidden, head, *others, DistillationSettings())
    lm_loss = distillation_loss(hidden, head, others[0], None, DistillationSettings(loss="lm"))
    assert both.distance.item() == alone.distance.item() == alone.total.item()
    assert both.total.item() == pytest.approx(alone.total.item() + 0.5 * lm_loss.total.item(), rel=1e-12)
    assert (both.total.requires_grad, both.distance.requires_grad) == (True, False)
    assert lm_loss.distance.item() == 0


def test_the_temperature_divides_logits_and_multiplies_nothing():
    hidden, head = numbers(9, 4), OutputHead(numbers(13, 4, seed=1))
    targets = some_targets(9, 13)
    hot = distillation_loss(hidden, head, Counted(some_labels(9, 13)), targets, DistillationSettings(temperature=2.0))
    cold = forward_kl(head.logits(hidden) / 2, targets.logits() / 2).mean()
    torch.testing.assert_close(hot.total, cold)


def test_a_tied_head_gets_the_gradients_of_both_its_uses():
    ids, labels = torch.arange(12) % 5, some_labels(12, 5)
    gradients = []
    for function, counted in ((distillation_loss, Counted(labels)), (plain_loss, labels)):
        embedding = numbers(5, 3).requires_grad_()
        wanted = DistillationSettings(lm_loss_weight=0.5)
        loss = function(embedding[ids].tanh(), OutputHead(embedding), counted, some_targets(12, 5), wanted)
        (loss.total if isinstance(loss, DistillationLoss) else loss).backward()
        gradients.append(embedding.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("student_dtype", [torch.float32, torch.bfloat16])
def test_products_in_bfloat16_give_gradients_in_the_students_dtype_that_agree_within_rounding(student_dtype):
    hidden, weight = numbers(300, 16, seed=1, dtype=student_dtype), numbers(40, 16, seed=2, dtype=student_dtype)
    teacher = numbers(300, 8, seed=3).bfloat16(), numbers(40, 8, seed=4).bfloat16()
    labels, wanted = some_labels(300, 40), DistillationSettings(lm_loss_weight=0.5)
    inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    targets = HiddenTargets(teacher[0], OutputHead(teacher[1]))
    loss = distillation_loss(inputs[0], OutputHead(inputs[1]), Counted(labels), targets, wanted, torch.bfloat16).total
    loss.backward()

    wide = hidden.double().requires_grad_(), weight.double().requires_grad_()
    targets = HiddenTargets(teacher[0].double(), OutputHead(teacher[1].double()))
    expected = plain_loss(wide[0], OutputHead(wide[1]), labels, targets, wanted)
    expected.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)
    for got, exact in zip(inputs, wide, strict=True):
        assert got.grad.dtype == student_dtype
        assert (got.grad.double() - exact.grad).norm() < 1e-2 * exact.grad.norm()


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jsd", "mse", "cosine", "lm"])
def test_logits_exist_for_one_chunk_of_tokens_at_a_time(loss):
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(part.numel() for part in (result,) if isinstance(part, torch.Tensor))
            return result

    vocab_size = 50
    hidden, weight = numbers(4 * CHUNK, 3).requires_grad_(), numbers(vocab_size, 3).requires_grad_()
    targets, wanted = some_targets(4 * CHUNK, vocab_size, 2), DistillationSettings(loss=loss, temperature=2.0)
    with Watch():
        distillation_loss(
            hidden, OutputHead(weight), Counted(some_labels(4 * CHUNK, vocab_size)), targets, wanted
        ).total.backward()
    assert max(sizes) == CHUNK * vocab_size


def test_sums_over_batches_are_those_of_the_whole():
    hidden, head, labels = numbers(2 * CHUNK + 9, 4), numbers(20, 4, seed=1), some_labels(2 * CHUNK + 9, 20)
    teacher_hidden, teacher_head = numbers(len(hidden), 3, seed=2), OutputHead(numbers(23, 3, seed=3))
    sums = LossSums()
    for start, end in ((0, 1), (1, CHUNK + 5), (CHUNK + 5, len(hidden))):
        rows = slice(start, end)
        sums.add(hidden[rows], OutputHead(head), labels[rows], HiddenTargets(teacher_hidden[rows], teacher_head))
    losses = sums.means()
    logits = hidden @ head.T
    assert losses.num_tokens == len(hidden)
    kl = plain_kl(logits, (teacher_hidden @ teacher_head.weight.T)[:, :20])  # without the teacher's padding
    assert losses.kl_nats == pytest.approx(kl.item(), rel=1e-9)
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
