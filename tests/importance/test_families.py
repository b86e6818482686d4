import pytest
import torch

from minitron_nas.architecture.config import architecture_of
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
    experts = (shape.num_experts,) if shape.num_experts else ()
    neurons = shape.moe_intermediate_size or shape.intermediate_size
    assert scores.hidden.shape == (48,)
    assert scores.neurons.shape == (4, *experts, neurons)
    assert scores.heads.shape == (4, shape.num_attention_heads)
    assert scores.kv_groups.shape == (4, shape.num_key_value_heads)
    assert scores.experts.shape == (4, shape.num_experts)
    attention, ffn = (
        torch.tensor([row.in_kind(kind) for kind in shape.kinds]) for row in layouts()[model_type].writers()
    )
    for part, there in ((scores.neurons, ffn), (scores.heads, attention), (scores.kv_groups, attention)):
        assert part[there].isfinite().all()
        assert part[~there].isnan().all()
    for part in (scores.hidden, scores.experts, scores.layers):
        assert part.isfinite().all()
    assert (scores.hidden > 0).all()
    assert (scores.heads[attention] > 0).all()


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
