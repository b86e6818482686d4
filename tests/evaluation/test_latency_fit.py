"""From measured stacks to a model: known times are found again."""

from dataclasses import replace

import numpy as np
import pytest

from minitron_nas.errors import LatencyError
from minitron_nas.evaluation.latency_design import StackTimes, WholeTimes
from minitron_nas.evaluation.latency_fit import fit_latency
from minitron_nas.evaluation.latency_terms import (
    Setting,
)

SETTING = Setting(
    model_type="llama",
    vocab_size=49152,
    head_dim=64,
    num_experts_per_tok=0,
    neurons="intermediate_size",
    device="a device",
    dtype="bfloat16",
    threads=2,
    batch=1,
    prompt_tokens=512,
    context_tokens=512,
    torch="2.13.0",
    transformers="5.24.0",
)
REFERENCE = (2.0, 0.05)


def shape_of(hidden, neurons, heads, groups):
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    return dict(zip(names, (hidden, neurons, heads, groups), strict=True))


SHAPES = [
    shape_of(hidden, neurons, heads, groups)
    for hidden in (288, 432, 576)
    for neurons in (640, 1536)
    for heads, groups in ((9, 3), (6, 3), (4, 2), (3, 1))
]


def layer(shape, curve=0.0):
    """Seconds of a layer in both phases; `curve` bends them with the width, as no term does."""
    hidden, neurons, heads = (shape[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads"))
    groups, bend = shape["num_key_value_heads"], 1 + curve * np.sin(3 * np.log2(hidden))
    prefill = 0.004 + 6e-9 * hidden * neurons + 4e-9 * hidden * 64 * heads + 2e-6 * 64 * heads
    decode = 2e-4 + 3e-10 * hidden * neurons + 1e-7 * 64 * groups
    return np.array([prefill * bend, decode * bend])


def outside(shape):
    return np.array([0.01 + 2e-5 * shape["hidden_size"], 1e-3 + 1e-6 * shape["hidden_size"]])


def stack(shape, curve=0.0, reference=REFERENCE, noise=1.0):
    one = layer(shape, curve) * noise
    long = 10 * one + outside(shape)
    return StackTimes(shape, 5, tuple(one / REFERENCE), tuple(long / REFERENCE), reference)


def whole(shape, num_layers, curve=0.0):
    seconds = num_layers * layer(shape, curve) + outside(shape)
    return WholeTimes(shape | {"num_hidden_layers": num_layers}, tuple(seconds / REFERENCE), REFERENCE)


BETWEEN = [whole(shape_of(504, 1024, 8, 2), 27), whole(shape_of(360, 896, 6, 2), 20)]


def test_times_that_are_sums_of_terms_are_found_again():
    model = fit_latency(SETTING, [stack(shape) for shape in SHAPES], BETWEEN)
    assert model.num_measurements == 2 * len(SHAPES)
    for phase in ("prefill", "decode"):
        assert model.errors(phase) == pytest.approx([0, 0], abs=1e-6)
        assert model.phase(phase).r_squared == pytest.approx(1)
        assert model.phase(phase).layer_error < 1e-6


def test_noise_of_two_percent_makes_errors_of_no_more():
    noises = np.random.default_rng(0).normal(1, 0.02, (len(SHAPES), 2))
    stacks = [stack(shape, noise=noise) for shape, noise in zip(SHAPES, noises, strict=True)]
    model = fit_latency(SETTING, stacks, BETWEEN)
    for phase in ("prefill", "decode"):
        assert np.abs(model.errors(phase)).max() < 0.02
        assert model.phase(phase).r_squared > 0.97


def test_what_no_term_says_is_left_to_a_residual_where_it_helps():
    widths = [shape_of(hidden, neurons, 9, 3) for hidden in range(288, 577, 24) for neurons in (640, 1536)]
    wholes = [whole(shape_of(hidden, 1024, 9, 3), 27, 0.1) for hidden in (300, 396, 444)]
    bent = fit_latency(SETTING, [stack(shape, 0.1) for shape in widths], wholes)
    assert bent.prefill.residual is not None
    assert np.abs(bent.errors("prefill")).max() < 0.002
    without = bent.model_copy(update={"prefill": bent.prefill.model_copy(update={"residual": None})})
    assert np.abs(without.errors("prefill")).max() > 0.02


def test_a_machine_that_was_slow_for_a_while_does_not_tell():
    stacks = [stack(shape) for shape in SHAPES]
    slow = [replace(each, reference_seconds=(40.0, 1.0)) if place < 8 else each for place, each in enumerate(stacks)]
    assert fit_latency(SETTING, slow) == fit_latency(SETTING, stacks)


def test_too_few_shapes_are_refused():
    with pytest.raises(LatencyError, match="5 shapes of layers were measured, and at least 6 are needed; give a space"):
        fit_latency(SETTING, [stack(shape) for shape in SHAPES[:5]])
