import pytest
import torch

from minitron_nas.distillation.head import OutputHead
from minitron_nas.distillation.losses import LossSums, distillation_loss, forward_kl
from minitron_nas.distillation.targets import HiddenTargets
from minitron_nas.testing import tiny_config, tiny_model

HEADS = [(1.0, None), (8.0, None), (1.0, 3.0), (4.0, 2.0)]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("model_type", "changes", "scaling", "softcap"),
    [
        ("llama", {}, 1.0, None),
        ("granite", {"logits_scaling": 4.0}, 4.0, None),
        ("gemma2", {"final_logit_softcapping": 5.0}, 1.0, 5.0),
    ],
)
def test_a_models_head_gives_the_models_logits(model_type, changes, scaling, softcap):
    model = tiny_model(tiny_config(model_type, **changes), dtype=torch.float64)
    ids = torch.arange(12)[None]
    head = OutputHead.of(model)
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
    assert (head.scaling, head.softcap) == (scaling, softcap)
    torch.testing.assert_close(head.logits(hidden), model(ids).logits[0])


@pytest.mark.parametrize(("scaling", "softcap"), HEADS)
def test_value_and_gradients_of_the_chunked_loss_are_those_of_the_plain_formula(scaling, softcap):
    hidden, weight, labels = numbers(300, 5), numbers(11, 5, seed=1), torch.arange(300) % 11
    teacher_hidden, teacher = numbers(300, 4, seed=2), OutputHead(numbers(11, 4, seed=3), scaling, softcap)
    gradients = []
    for chunked in (True, False):
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        student = OutputHead(inputs[1], scaling, softcap)
        if chunked:
            loss = distillation_loss(inputs[0], student, labels, HiddenTargets(teacher_hidden, teacher), 0.5)
        else:
            logits = student.logits(inputs[0])
            loss = forward_kl(logits, teacher.logits(teacher_hidden)).mean()
            loss = loss + 0.5 * torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        gradients.append((loss.detach(), inputs[0].grad, inputs[1].grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("scaling", "softcap"), HEADS)
def test_a_model_has_no_distance_to_itself(scaling, softcap):
    sums, head = LossSums(), OutputHead(numbers(11, 5), scaling, softcap)
    sums.add(numbers(20, 5, seed=1), head, torch.arange(20) % 11, HiddenTargets(numbers(20, 5, seed=1), head))
    assert sums.means().kl_nats == 0
