"""The loss on hidden states: numbers by hand, which layers, when, and what is left of it."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from minitron_nas.distillation.loss.intermediate import IntermediateLoss, intermediate_loss, weighed
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.hidden_cache import HiddenCache
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.errors import PlanError
from minitron_nas.testing import tiny_config, tiny_model


def shape(num_hidden_layers, hidden_size=2):
    return SimpleNamespace(num_hidden_layers=num_hidden_layers, hidden_size=hidden_size)


def wanted(**changes):
    return DistillationSettings(**{"intermediate": "always", "teacher_signal": "online", **changes})


def online(num_hidden_layers):
    return OnlineTeacher(tiny_model(tiny_config("llama", num_hidden_layers=num_hidden_layers)))


def states(*places):
    return {place: torch.randn(2, 5, width) for place, width in places}


def test_the_third_last_layers_and_the_embeddings_are_matched_by_default():
    # Layer 29 of 0..31 to layer 13 of 0..15, as in the paper's appendix; their outputs are read by the next layers.
    assert IntermediateLoss(shape(16), shape(32), wanted(), 0).pairs == ((0, 0), (30, 14))


def test_layers_may_be_named_from_either_end():
    settings = wanted(intermediate_layers=[(4, 1), (-1, -1)])
    assert IntermediateLoss(shape(3), shape(6), settings, 0).pairs == ((0, 0), (5, 2), (6, 3))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((-7, 0), "the teacher has no layer -7; it has 6 layers, so choose from -6 to 5"),
        ((0, 3), "the student has no layer 3; it has 3 layers, so choose from -3 to 2"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused(layers, message):
    with pytest.raises(PlanError, match=f"distillation.intermediate_layers: {message}"):
        IntermediateLoss(shape(3), shape(6), wanted(intermediate_layers=[layers]), 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", (1 - math.sqrt(0.5)) + (1 - 0.96)),
        ("mse", 0.5 + 1.0),
    ],
)
def test_distances_of_equally_wide_models_are_those_by_hand(name, expected):
    settings = wanted(intermediate_loss=name, intermediate_layers=[(0, 0)])
    loss = IntermediateLoss(shape(1), shape(1), settings, 0)
    student = {0: torch.tensor([[[1.0, 0.0]]]), 1: torch.tensor([[[4.0, 3.0]]])}
    teacher = {0: torch.tensor([[[1.0, 1.0]]]), 1: torch.tensor([[[3.0, 4.0]]])}
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-6)
    assert list(loss.parameters()) == []


@pytest.mark.parametrize("name", ["cosine", "mse"])
def test_one_learned_map_lifts_the_states_of_all_places(name):
    loss = IntermediateLoss(shape(3, 4), shape(6, 7), wanted(intermediate_loss=name), 0)
    (weight,) = loss.parameters()
    student, teacher = states((0, 4), (1, 4)), states((0, 7), (4, 7))
    expected = 0.0
    for place, own in ((0, 0), (4, 1)):
        lifted = student[own] @ weight.T
        if name == "mse":
            expected = expected + (lifted - teacher[place]).square().mean()
        else:
            expected = expected + 1 - cosine_similarity(lifted, teacher[place], dim=-1).mean()
    torch.testing.assert_close(loss(student, teacher), expected)


def test_the_map_depends_on_the_seed_alone():
    weights = [IntermediateLoss(shape(3, 4), shape(6, 7), wanted(), seed).lift.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_half_precision_states_are_compared_in_float32():
    loss = IntermediateLoss(shape(3, 4), shape(6, 7), wanted(), 0)
    student, teacher = states((0, 4), (1, 4)), states((0, 7), (4, 7))
    got = loss(*({place: state.bfloat16() for place, state in side.items()} for side in (student, teacher)))
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(loss(student, teacher).item(), abs=0.02)


def test_alpha_makes_the_loss_on_states_as_large_as_that_on_logits_and_is_a_constant():
    states_loss = torch.tensor(0.25, requires_grad=True)
    distance = torch.tensor(2.0, requires_grad=True)
    value = weighed(states_loss, distance)
    value.backward()
    assert value.item() == 2.0
    assert states_loss.grad.item() == 8.0  # alpha = 2 / 0.25
    assert distance.grad is None


def test_states_that_agree_to_the_bit_are_no_division_by_zero():
    states_loss = torch.tensor(0.0, requires_grad=True)
    value = weighed(states_loss, torch.tensor(2.0))
    value.backward()
    assert value.item() == 0
    assert states_loss.grad.isfinite()


@pytest.mark.parametrize(
    ("intermediate", "num_layers", "is_on"),
    [("none", 3, False), ("always", 6, True), ("auto", 3, True), ("auto", 4, False), ("auto", 6, False)],
)
def test_auto_is_on_for_at_most_half_of_the_teachers_layers(intermediate, num_layers, is_on):
    settings = wanted(intermediate=intermediate)
    assert (intermediate_loss(shape(num_layers, 48), online(6), settings, 0) is not None) == is_on


@pytest.mark.parametrize("intermediate", ["always", "auto"])
def test_a_cache_that_holds_no_states_inside_the_teacher_is_refused(intermediate):
    cache = HiddenCache.__new__(HiddenCache)
    with pytest.raises(
        PlanError,
        match=f"distillation.intermediate={intermediate} needs hidden states inside the teacher, .* "
        "set distillation.teacher_signal=online",
    ):
        intermediate_loss(shape(3), cache, wanted(intermediate=intermediate), 0)


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_states_of_a_teacher_whose_layers_lie_on_other_devices_come_to_the_students(kind):
    loss = IntermediateLoss(shape(3), shape(6), wanted(intermediate_loss=kind), 0)
    own = {place: state.to("meta") for place, state in states((0, 2), (1, 2)).items()}
    assert loss(own, states((0, 2), (4, 2))).is_meta
