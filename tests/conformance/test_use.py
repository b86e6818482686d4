"""The checks of what people do with a family notice a step that does something else."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from minitron_nas.families.catalog import layout_of, layouts, with_layout
from minitron_nas.importance.baselines import random_scores
from minitron_nas.testing import Subject, tiny_config, use


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject.make(layout_of("llama"), tiny_config("llama", num_hidden_layers=3), tmp_path_factory.mktemp("llama"))


def random(*arguments: Any) -> Any:
    return random_scores(*arguments[1:3], seed=1)


FAULTS: dict[str, tuple[str, Callable[..., Any], str]] = {
    "activation": ("score_importance", random, "activation score of channels, read by model.layers"),
    "magnitude": ("magnitude_scores", random, "magnitude score of channels, read by model.layers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_scores_of_what_is_not_there_are_noticed(
    subject: Subject, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    name, other, message = FAULTS[fault]
    monkeypatch.setattr(use, name, other)
    with pytest.raises(AssertionError, match=message):
        use.check_scores(replace(subject, folder=tmp_path))


def test_layers_that_stay_are_noticed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use, "without_layers", lambda *_: nullcontext())
    with pytest.raises(AssertionError, match=r"model\.layers\.1 is skipped otherwise than cut"):
        use.check_depth(subject)


def test_documents_that_see_each_other_are_noticed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = subject.model.get_decoder()
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda position_ids=None, **inputs: forward(**inputs))
    with pytest.raises(AssertionError, match="packed documents change each other"):
        use.check_packing(subject)


def test_experts_that_compute_something_else_than_is_scored_are_noticed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("gpt_oss", num_hidden_layers=3)
    experts = Subject.make(layout_of("gpt_oss"), config, tmp_path)
    use.check_experts(experts)

    def plain_gate(module: Any, expert: int, inputs: Any) -> Any:
        gate_up = inputs @ module.gate_up_proj[expert] + module.gate_up_proj_bias[expert]
        return gate_up[..., ::2].sigmoid() * gate_up[..., ::2] * gate_up[..., 1::2]

    monkeypatch.setattr(use, "expert_neurons", plain_gate)
    with pytest.raises(AssertionError, match=r"experts of model\.layers\.{layer}\.mlp\.experts put out something else"):
        use.check_experts(experts)


def test_borders_that_transformers_does_not_look_for_are_noticed(tmp_path: Any) -> None:
    layout = replace(layout_of("gpt_oss"), finds_borders=True)
    subject = Subject.make(layout, tiny_config("gpt_oss", num_hidden_layers=3), tmp_path)
    with pytest.raises(AssertionError, match=r"packed documents change each other by .* \(finds_borders\)"):
        use.check_packing(subject)


def test_training_that_does_nothing_is_noticed(
    subject: Subject, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use, "distill", lambda *_: None)
    with pytest.raises(AssertionError, match="distillation took KL to the teacher from"):
        use.check_distils(replace(subject, folder=tmp_path))


def test_a_table_that_is_tried_stands_for_its_type_and_leaves_the_known_ones_alone() -> None:
    before = dict(layouts())
    other, new = replace(layout_of("llama")), replace(layout_of("llama"), model_type="new")
    with with_layout(other), with_layout(new):
        assert layout_of("llama") is other
        assert layout_of("new") is new
    assert layouts() == before
    assert layout_of("llama") is before["llama"]
