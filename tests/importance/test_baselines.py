import pytest
import torch

from minitron_nas.importance.baselines import magnitude_scores, random_scores
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.testing import tiny_checkpoint, tiny_config, tiny_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return open_checkpoint(tiny_checkpoint(tmp_path_factory.mktemp("llama"), "llama"))


def test_magnitudes_are_the_norms_of_all_weights_along_a_part(llama):
    scores = magnitude_scores(llama.headers, llama.architecture, llama.layout)
    model = tiny_model(tiny_config("llama"))
    layer = model.model.layers[2]
    up, gate, down = layer.mlp.up_proj.weight, layer.mlp.gate_proj.weight, layer.mlp.down_proj.weight
    torch.testing.assert_close(scores.neurons[2], torch.cat([up, gate, down.T], dim=1).norm(dim=1))
    queries, output = layer.self_attn.q_proj.weight.view(6, -1), layer.self_attn.o_proj.weight.T.reshape(6, -1)
    torch.testing.assert_close(scores.heads[2], torch.cat([queries, output], dim=1).norm(dim=1))
    keys, values = layer.self_attn.k_proj.weight.view(2, -1), layer.self_attn.v_proj.weight.view(2, -1)
    grouped = torch.cat([queries.reshape(2, -1), output.reshape(2, -1), keys, values], dim=1)
    torch.testing.assert_close(scores.kv_groups[2], grouped.norm(dim=1))
    matrices = [parameter for parameter in layer.parameters() if parameter.dim() == 2]
    assert scores.layers[2].item() == pytest.approx(sum(m.double().square().sum().item() for m in matrices) ** 0.5)
    channels = torch.zeros(48)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            along = 0 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
            channels += parameter.square().sum(dim=1 - along)
    torch.testing.assert_close(scores.hidden, channels.sqrt())


def test_experts_are_scored_with_their_router_rows_and_their_neurons_by_themselves(tmp_path):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, "mixtral"))
    scores = magnitude_scores(checkpoint.headers, checkpoint.architecture, checkpoint.layout)
    experts = tiny_model(tiny_config("mixtral")).model.layers[1].mlp
    gate_up, down = experts.experts.gate_up_proj[3], experts.experts.down_proj[3]
    neurons = torch.cat([gate_up.view(2, 96, 48).transpose(0, 1).reshape(96, -1), down.T], dim=1)
    torch.testing.assert_close(scores.neurons[1, 3], neurons.norm(dim=1))
    whole = neurons.square().sum() + experts.gate.weight[3].square().sum()
    assert scores.experts[1, 3].item() == pytest.approx(whole.sqrt().item(), rel=1e-5)


def test_random_scores_follow_the_seed_and_fit_the_shape(llama):
    one, two, three = (random_scores(llama.architecture, llama.layout, seed) for seed in (1, 1, 2))
    assert torch.equal(one.neurons, two.neurons)
    assert not torch.equal(one.neurons, three.neurons)
    assert (one.hidden.shape, one.heads.shape, one.experts.shape) == ((48,), (4, 6), (4, 0))
