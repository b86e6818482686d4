"""Attention by document against transformers' masks, in every family."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from minitron_nas.distillation.signals.teacher import final_hidden
from minitron_nas.families.catalog import layouts
from minitron_nas.models import attention
from minitron_nas.models.attention import attend_by_document
from minitron_nas.testing import tiny_config, tiny_model
from minitron_nas.testing.tiny import TINY_E2B

FAMILIES = sorted(layouts().keys() - {"granitemoehybrid", "opt"})
"""Granite 4.0 H and OPT do not look at positions when they make their masks."""

BY_DOCUMENT = "minitron_nas_by_document"


def packed(*rows: list[int]) -> tuple[Tensor, Tensor]:
    """Random tokens of a batch, and their positions in documents of these lengths."""
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])
    return torch.randint(3, 300, positions.shape, generator=torch.Generator().manual_seed(1)), positions


def two_models(model_type: str, **changes: Any) -> tuple[Any, Any]:
    """A model that masks, and the same by document."""
    masked, by_document = (tiny_model(tiny_config(model_type, **changes)) for _ in range(2))
    by_document.load_state_dict(masked.state_dict())
    attend_by_document(by_document)
    return masked.eval(), by_document.eval()


def states_and_gradients(model: Any, ids: Tensor, positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    states = final_hidden(model, ids, positions)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2)).to(states.device)
    (states.float() * weights).sum().backward()
    return states.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(masked: Any, by_document: Any, ids: Tensor, positions: Tensor) -> None:
    (states, gradients), (others, their) = (states_and_gradients(m, ids, positions) for m in (masked, by_document))
    torch.testing.assert_close(others, states, rtol=1e-4, atol=1e-5)
    assert their.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(their[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-6)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """The tokens over which attention is computed, and whether by a mask, call by call."""
    told, forward = list[tuple[int, bool]](), attention.sdpa_attention_forward

    def remembered(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **others: Any) -> Any:
        told.append((query.shape[2], mask is not None))
        return forward(module, query, key, value, mask, **others)

    monkeypatch.setattr(attention, "sdpa_attention_forward", remembered)
    return told


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_attends_by_document_as_it_does_through_a_mask(model_type: str, spans: list[tuple[int, bool]]) -> None:
    masked, by_document = two_models(model_type)
    assert_same(masked, by_document, *packed([9, 5, 10], [24], [1, 22, 1]))
    if by_document.config._attn_implementation == BY_DOCUMENT:
        assert {*spans} == {(9, False), (5, False), (10, False), (24, False), (1, False), (22, False)}
    else:
        assert masked.config._attn_implementation == "eager"


@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text", "cohere2"])  # of which one has other layers, too
@pytest.mark.parametrize(("window", "through_a_mask"), [(5, True), (9, True), (10, False), (24, False)])
def test_layers_whose_window_is_shorter_than_a_document_are_masked(
    model_type: str, window: int, through_a_mask: bool, spans: list[tuple[int, bool]]
) -> None:
    masked, by_document = two_models(model_type, sliding_window=window)
    assert_same(masked, by_document, *packed([9, 5, 10]))
    assert any(span == (24, True) for span in spans) == through_a_mask
    assert any(span == (10, False) for span in spans) == (not through_a_mask or model_type == "cohere2")


def test_a_sequence_that_is_one_document_is_no_other_work_than_before(spans: list[tuple[int, bool]]) -> None:
    masked, by_document = two_models("llama")
    ids, positions = packed([24], [24])
    assert torch.equal(final_hidden(masked, ids, positions), final_hidden(by_document, ids, positions))
    assert {*spans} == {(24, False)}


def test_a_continuation_and_padding_go_the_way_of_transformers() -> None:
    masked, by_document = two_models("llama")
    ids, _ = packed([12], [12])
    padding = torch.ones_like(ids)
    padding[0, :4] = 0
    first, other = (m(input_ids=ids, attention_mask=padding).logits[:, 4:] for m in (masked, by_document))
    assert torch.equal(first, other)
    written, others = (m.generate(ids, max_new_tokens=8, do_sample=False) for m in (masked, by_document))
    assert torch.equal(written, others)


def test_recomputed_layers_attend_by_document_too(spans: list[tuple[int, bool]]) -> None:
    masked, by_document = two_models("llama")
    for model in (masked, by_document):
        model.train()
        (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    assert_same(masked, by_document, *packed([9, 15]))
    assert {*spans} == {(9, False), (15, False)}
    assert len(spans) == 2 * 2 * by_document.config.num_hidden_layers  # forward, and again backward


def test_a_model_that_attends_in_another_way_keeps_it_and_the_choice_can_be_taken_back() -> None:
    eager = AutoModelForCausalLM.from_config(tiny_config("llama"), attn_implementation="eager")
    attend_by_document(eager)
    assert eager.config._attn_implementation == "eager"
    _, by_document = two_models("llama")
    attend_by_document(by_document, wanted=False)
    assert by_document.config._attn_implementation == "sdpa"


def test_a_model_whose_last_layers_read_keys_of_others_attends_by_masks() -> None:
    masked, by_document = two_models("gemma4_text", **TINY_E2B)
    assert by_document.config._attn_implementation == "sdpa"
    assert_same(masked, by_document, *packed([9, 15]))


def test_the_choice_is_not_written_into_a_config() -> None:
    masked, by_document = two_models("llama")
    assert by_document.config.to_json_string() == masked.config.to_json_string()


def plain_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
) -> Tensor:
    """What torch's kernel over lengths computes, by its interface: (num_tokens, num_heads, head_dim) each."""
    assert window_size == (-1, 0)  # causal
    assert query_bounds.dtype == torch.int32
    assert torch.equal(query_bounds, key_bounds)
    assert int(query_bounds.diff().max()) <= most_queries == most_keys
    parts = []
    for begin, end in pairwise(query_bounds.tolist()):
        q, k, v = (side[begin:end].transpose(0, 1) for side in (query, key, value))
        parts.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def over_lengths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that attends to all documents of a batch at once; a CPU with a kernel written out."""
    device = torch.device(request.param)
    if device.type == "cpu":
        monkeypatch.setattr(attention, "_VARLEN", SimpleNamespace(varlen_attn=plain_kernel))
        monkeypatch.setattr(attention, "attends_over_lengths", lambda device: True)
    elif not torch.cuda.is_available() or not attention.attends_over_lengths(device):
        pytest.skip("flash attention over lengths takes a GPU and torch 2.10")
    return device


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_kernel_attends_to_all_documents_at_once(
    model_type: str, over_lengths: torch.device, spans: list[tuple[int, bool]]
) -> None:
    masked, by_document = (model.to(over_lengths) for model in two_models(model_type))
    ids, positions = (each.to(over_lengths) for each in packed([90, 50, 100], [240], [1, 238, 1]))
    if by_document.config._attn_implementation != BY_DOCUMENT:
        pytest.skip("it attends in a way of its own")
    exact, slopes = states_and_gradients(masked, ids, positions)
    spans.clear()
    knows_heads = model_type not in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")  # of keys and values of one size
    with torch.autocast(over_lengths.type, torch.bfloat16):
        others, their = states_and_gradients(by_document, ids, positions)
        assert {90, 50, 100, 238}.isdisjoint(length for length, _ in spans) == knows_heads
        states, gradients = states_and_gradients(masked, ids, positions)
    # Both are rounded, and so far from float32.
    assert float((others - exact).norm()) < 1.5 * float((states - exact).norm()) + 1e-4
    assert their.keys() == slopes.keys()
    assert apart(their, slopes) < 1.5 * apart(gradients, slopes) + 1e-4


def apart(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """How far gradients are from each other, all of them together."""
    return float(torch.stack([(some[name] - slope).norm() for name, slope in others.items()]).norm())


def test_what_a_kernel_does_not_know_attends_one_document_after_the_other(
    over_lengths: torch.device, spans: list[tuple[int, bool]]
) -> None:
    masked, by_document = (model.to(over_lengths) for model in two_models("llama"))  # in float32
    assert_same(masked, by_document, *(each.to(over_lengths) for each in packed([9, 5, 10], [24], [1, 22, 1])))
    assert {(9, False), (5, False), (10, False)} <= {*spans}


@pytest.mark.parametrize(
    ("documents", "columns"), [([24], 1), ([9, 15], 2), ([9, 5, 10], 4), ([6, 6, 6, 6], 4), ([4, 4, 4, 4, 8], 8)]
)
def test_compiled_layers_meet_few_numbers_of_documents(documents: list[int], columns: int) -> None:
    _, positions = packed(documents)
    number = (positions == 0).cumsum(1)

    def same_document(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return number[row, query] == number[row, key]

    (lengths,) = attention._lengths(same_document, 1, 24, torch.device("cpu"))
    assert lengths.tolist() == documents + [0] * (columns - len(documents))
