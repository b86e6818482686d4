"""Mamba 2 mixers that lose heads and channels, against the recurrence written out token by token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from minitron_nas.families.catalog import layout_of
from minitron_nas.pruning.student import build_student
from minitron_nas.testing import Subject, tiny_config

NUM_HEADS, HEAD_DIM, NUM_STATES, NUM_TAPS = 6, 8, 16, 3
ROUNDING = {"rtol": 1e-4, "atol": 5e-5}


def slow_mixer(
    mixer: Any, inputs: Tensor, keeps: Tensor, num_groups: int, norm_first: bool, least_step: float
) -> Tensor:
    """Put out what a mixer does of which some channels of heads are not there.

    Args:
        mixer: Of the teacher.
        inputs: (seq_len, hidden_size).
        keeps: (num_heads, head_dim), bool.
        num_groups: Of its heads.
        norm_first: Whether the norm, if there is one, comes before the gate.
        least_step: Of the states.
    """
    weights = dict(mixer.named_parameters())
    width, in_groups, seq_len = keeps.numel(), num_groups * NUM_STATES, len(inputs)
    gates, mixed, steps = (inputs @ weights["in_proj.weight"].T).split((width, width + 2 * in_groups, NUM_HEADS), dim=1)
    padded = torch.cat([torch.zeros(NUM_TAPS - 1, mixed.shape[1]), mixed])
    taps = weights["conv1d.weight"][:, 0]
    mixed = silu(sum(padded[at : at + seq_len] * taps[:, at] for at in range(NUM_TAPS)) + weights["conv1d.bias"])
    values, writes, reads = mixed.split((width, in_groups, in_groups), dim=1)
    steps = softplus(steps + weights["dt_bias"]).clamp(min=least_step)
    outputs = torch.zeros(seq_len, NUM_HEADS, HEAD_DIM)
    for head in range(NUM_HEADS):
        group, state = head // (NUM_HEADS // num_groups), torch.zeros(HEAD_DIM, NUM_STATES)
        for token in range(seq_len):
            step, value = steps[token, head], values[token].view(NUM_HEADS, HEAD_DIM)[head]
            written = torch.outer(value, writes[token].view(num_groups, NUM_STATES)[group])
            state = torch.exp(-step * weights["A_log"][head].exp()) * state + step * written
            read = state @ reads[token].view(num_groups, NUM_STATES)[group]
            outputs[token, head] = read + weights["D"][head] * value
    outputs = outputs * keeps
    gates = silu(gates).view(seq_len, NUM_HEADS, HEAD_DIM)
    if "norm.weight" in weights:
        outputs = outputs if norm_first else outputs * gates
        by_group = hasattr(mixer.norm, "group_size") or hasattr(mixer.norm, "n_groups")  # Granite: later
        grouped = outputs.view(seq_len, num_groups if by_group else 1, -1)
        mean_square = grouped.pow(2).sum(-1, keepdim=True) / (keeps.sum() / grouped.shape[1])
        scaled = (grouped / (mean_square + mixer.norm.variance_epsilon).sqrt()).view(seq_len, width)
        outputs = (scaled * weights["norm.weight"]).view_as(gates)
        gates = gates if norm_first else torch.ones_like(gates)
    return (outputs * gates).view(seq_len, width) @ weights["out_proj.weight"].T


@pytest.mark.parametrize("num_groups", [1, 2, 3])
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("nemotron_h", {}),
        ("falcon_h1", {}),
        ("falcon_h1", {"mamba_rms_norm": True}),
        ("falcon_h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": False}),
        ("granitemoehybrid", {"mamba_n_heads": NUM_HEADS, "mamba_expand": 1}),
    ],
)
@torch.no_grad()
def test_a_mixer_without_some_heads_and_channels(
    tmp_path: Path, model_type: str, changes: dict[str, Any], num_groups: int
) -> None:
    layout = layout_of(model_type)
    groups = dict.fromkeys(layout.config_names("mamba_num_groups"), num_groups)
    config = tiny_config(model_type, num_hidden_layers=3, **groups, **changes)
    subject = Subject.make(layout, config, tmp_path, dtype=torch.float32)
    num_heads = NUM_HEADS - num_groups
    sizes = {"mamba_num_heads": num_heads, "mamba_head_dim": 6}
    if layout.hidden_divides_mixer:
        sizes["hidden_size"] = 6 * num_heads
    student = build_student(subject.prepared, subject.architecture.reshaped(sizes), torch.float32)

    order, keeps = subject.prepared.order, torch.zeros(NUM_HEADS, HEAD_DIM, dtype=torch.bool)
    in_group = NUM_HEADS // num_groups
    for group in range(num_groups):
        for head in order.mamba_heads[0, group][: num_heads // num_groups]:
            keeps[group * in_group + head, order.mamba_channels[0][:6]] = True
    channels = order.hidden[: sizes.get("hidden_size", 48)].sort().values
    inputs = torch.zeros(12, 48)
    inputs[:, channels] = torch.randn(12, len(channels), generator=torch.Generator().manual_seed(1))

    name = "mixer" if model_type == "nemotron_h" else "mamba"
    theirs, ours = (getattr(model.model.layers[0], name) for model in (subject.model, student))
    norm_first = model_type == "falcon_h1" and config.mamba_norm_before_gate
    least_step = config.time_step_min if model_type == "nemotron_h" else config.time_step_limit[0]
    every = torch.ones_like(keeps)
    torch.testing.assert_close(
        slow_mixer(theirs, inputs, every, num_groups, norm_first, least_step),
        theirs(inputs[None])[0],
        **ROUNDING,
    )
    if hasattr(ours, "norm") and hasattr(ours.norm, "variance_epsilon"):
        ours.norm.variance_epsilon = theirs.norm.variance_epsilon  # fewer hidden channels change that of all norms
    torch.testing.assert_close(
        slow_mixer(theirs, inputs, keeps, num_groups, norm_first, least_step)[:, channels],
        ours(inputs[None, :, channels])[0],
        **ROUNDING,
    )
