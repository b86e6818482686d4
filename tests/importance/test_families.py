import pytest
import torch

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.layout import NEURON_AXES, Axis, axis_sizes
from minitron_nas.families.catalog import layouts
from minitron_nas.importance.score import score_importance
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.testing import tiny_config, tiny_model
from minitron_nas.text.packing import pack


def scored(model_type):
    model, layout = tiny_model(tiny_config(model_type)), layouts()[model_type]
    ids = torch.randint(0, 320, (36,), generator=torch.Generator().manual_seed(0)).numpy()
    text = pack([ids[:20], ids[20:]], 12)
    shape = architecture_of(model.config.to_dict(), layout)
    return model, text, shape, score_importance(model, shape, layout, text, ImportanceSettings(), 2)


@pytest.mark.parametrize("model_type", layouts())
def test_every_part_of_every_family_gets_a_score(model_type):
    _, _, shape, scores = scored(model_type)
    layout, sizes = layouts()[model_type], axis_sizes(shape)
    parts = {
        "heads": (Axis.KV_GROUPS, (shape.num_attention_heads,)),
        "kv_groups": (Axis.KV_GROUPS, (shape.num_key_value_heads,)),
        "experts": (Axis.EXPERTS, (shape.num_experts,)),
    }
    for axis, name in NEURON_AXES.items():
        experts = (shape.num_experts,) if layout.in_experts(axis) and axis in layout.neuron_axes_of(shape) else ()
        parts[name] = (axis, (*experts, sizes[axis] if axis in layout.neuron_axes_of(shape) else 0))
    assert scores.hidden.shape == (48,)
    for name, (axis, size) in parts.items():
        found = getattr(scores, name)
        assert found.shape == (4, *size)
        has_it = [layout.has_axis(axis, kind) or axis not in layout.axes() or 0 in size for kind in shape.kinds]
        assert found.isfinite().flatten(1).all(dim=1).tolist() == has_it
    assert scores.hidden.isfinite().all()
    assert scores.layers.isfinite().all()
    assert (scores.hidden > 0).all()
    assert (scores.heads.nan_to_num(1) > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_experts_score_what_they_add_and_nothing_where_no_token_is_sent_to_them(model_type):
    model, text, shape, scores = scored(model_type)
    seen = []
    block = model.model.layers[1].mlp
    handle = block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.model(input_ids=text.input_ids, position_ids=text.position_ids, use_cache=False)
    handle.remove()
    states = seen[0].reshape(-1, 48)
    _, weights, chosen = block.gate(states)
    added = torch.zeros(len(states), shape.num_experts)
    for token, state in enumerate(states):
        for weight, expert in zip(weights[token], chosen[token].tolist(), strict=True):
            gate, up = (block.experts.gate_up_proj[expert] @ state).chunk(2)
            output = block.experts.down_proj[expert] @ (block.experts.act_fn(gate) * up)
            added[token, expert] = (weight * output).norm()
    samples = added.view(text.num_sequences, -1, shape.num_experts).norm(dim=1)
    torch.testing.assert_close(scores.experts[1], samples.mean(dim=0), rtol=1e-4, atol=1e-6)
