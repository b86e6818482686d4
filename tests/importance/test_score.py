import itertools

import pytest
import torch
from torch.nn.functional import cosine_similarity, linear, relu

from minitron_nas.architecture.config import architecture_of
from minitron_nas.families.catalog import layout_of
from minitron_nas.importance.score import score_importance
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.testing import tiny_config, tiny_model
from minitron_nas.text.packing import pack
from minitron_nas.text.tokens import PackedTokens

FAMILIES = ("llama", "mistral", "nemotron", "qwen2")
PARTS = ("hidden", "neurons", "heads", "kv_groups", "layers")
BIASES = {"llama": {"attention_bias": True, "mlp_bias": True}, "nemotron": {"attention_bias": True, "mlp_bias": True}}


@pytest.fixture(scope="module")
def text():
    """Five sequences of twelve tokens; documents end inside three of them."""
    ids = torch.randint(0, 320, (60,), generator=torch.Generator().manual_seed(0)).numpy()
    return pack([ids[:7], ids[7:12], ids[12:36], ids[36:40], ids[40:51], ids[51:]], 12)


def scored(model, text, batch_sequences=2, **settings):
    layout = layout_of(model.config.model_type)
    architecture = architecture_of(model.config.to_dict(), layout)
    return score_importance(model, architecture, layout, text, ImportanceSettings(**settings), batch_sequences)


def attention_output(model, attention, states, position_ids):
    """(seq_len, num_attention_heads, head_dim): attention before the output projection, head by head."""
    config, (seq_len, _) = model.config, states.shape
    cos, sin = (part[0] for part in model.model.rotary_emb(states[None], position_ids[None]))
    starts = torch.cummax(torch.where(position_ids == 0, torch.arange(seq_len), 0), dim=0).values

    def rotated(vector):
        head, rest = vector[:, : cos.shape[-1]], vector[:, cos.shape[-1] :]
        half = head.shape[-1] // 2
        turned = torch.cat([-head[:, half:], head[:, :half]], dim=-1)
        return torch.cat([head * cos + turned * sin, rest], dim=-1)

    q, k, v = (
        linear(states, part.weight, part.bias).view(seq_len, -1, config.head_dim)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    output = torch.zeros_like(q)
    for head in range(config.num_attention_heads):
        group = head // (config.num_attention_heads // config.num_key_value_heads)
        queries, keys = rotated(q[:, head]), rotated(k[:, group])
        for token in range(seq_len):
            seen = slice(int(starts[token]), token + 1)
            weights = (keys[seen] @ queries[token] / config.head_dim**0.5).softmax(dim=0)
            output[token, head] = weights @ v[seen, group]
    return output


@torch.no_grad()
def slow_activations(model, input_ids, position_ids):
    """What a token-by-token forward pass of one sequence measures, as (seq_len, units) a place."""
    config = model.config
    groups, per_group = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
    measured = {name: [] for name in PARTS}
    states = model.model.embed_tokens(input_ids)
    for layer in model.model.layers:
        inputs, normed = states, layer.input_layernorm(states)
        heads = attention_output(model, layer.self_attn, normed, position_ids)
        projection = layer.self_attn.o_proj
        columns = projection.weight.view(config.hidden_size, groups, per_group, config.head_dim)
        added = torch.einsum("tgpd,hgpd->tgh", heads.view(-1, groups, per_group, config.head_dim), columns)
        states = states + linear(heads.flatten(1), projection.weight, projection.bias)
        again = layer.post_attention_layernorm(states)
        up = linear(again, layer.mlp.up_proj.weight, layer.mlp.up_proj.bias)
        if config.model_type == "nemotron":
            neurons = relu(up) ** 2
        else:
            gate = linear(again, layer.mlp.gate_proj.weight, layer.mlp.gate_proj.bias)
            neurons = gate / (1 + (-gate).exp()) * up
        states = states + linear(neurons, layer.mlp.down_proj.weight, layer.mlp.down_proj.bias)
        measured["hidden"] += [normed, again]
        measured["neurons"].append(neurons)
        measured["heads"].append(heads.norm(dim=-1))
        measured["kv_groups"].append(added.norm(dim=-1))
        measured["layers"].append(cosine_similarity(inputs, states, dim=-1))
    return {name: torch.stack(places) for name, places in measured.items()}


def slow_scores(model, text):
    """The default aggregations of the activations: mean over samples of the L2 over the sequence."""
    samples = [slow_activations(model, *pair) for pair in zip(text.input_ids, text.position_ids, strict=True)]
    scores = {}
    for name in PARTS[:-1]:
        per_sample = torch.stack([(sample[name] ** 2).sum(dim=1).sqrt() for sample in samples])
        scores[name] = per_sample.mean(dim=0)
    scores["hidden"] = scores["hidden"].sum(dim=0)
    scores["layers"] = 1 - torch.stack([sample["layers"].mean(dim=1) for sample in samples]).mean(dim=0)
    return scores


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_scores_are_those_of_a_slow_plain_forward_pass(text, model_type, tied):
    model = tiny_model(tiny_config(model_type, tied=tied, num_hidden_layers=2, **BIASES.get(model_type, {})))
    scores, expected = scored(model, text), slow_scores(model, text)
    for name in PARTS:
        torch.testing.assert_close(getattr(scores, name), expected[name], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_there_is_one_score_per_unit(text, model_type):
    scores = scored(tiny_model(tiny_config(model_type)), text)
    assert [tuple(getattr(scores, name).shape) for name in PARTS] == [(48,), (4, 96), (4, 6), (4, 2), (4,)]
    assert all(getattr(scores, name).dtype == torch.float32 for name in PARTS)


@pytest.mark.parametrize(
    ("batch_aggregation", "sequence_aggregation"), list(itertools.product(("mean", "l2", "variance"), repeat=2))
)
def test_the_settings_choose_both_aggregations(text, batch_aggregation, sequence_aggregation):
    model = tiny_model(tiny_config("llama", num_hidden_layers=1))
    over_tokens = {
        "mean": lambda x: x.abs().mean(dim=0),
        "l2": lambda x: (x**2).sum(dim=0).sqrt(),
        "variance": lambda x: x.var(dim=0, correction=0),
    }[sequence_aggregation]
    over_samples = {
        "mean": lambda x: x.mean(dim=0),
        "l2": lambda x: (x**2).sum(dim=0).sqrt(),
        "variance": lambda x: x.var(dim=0, correction=0),
    }[batch_aggregation]
    pairs = zip(text.input_ids, text.position_ids, strict=True)
    samples = torch.stack([over_tokens(slow_activations(model, *pair)["neurons"][0]) for pair in pairs])
    chosen = {"batch_aggregation": batch_aggregation, "sequence_aggregation": sequence_aggregation}
    torch.testing.assert_close(scored(model, text, **chosen).neurons[0], over_samples(samples), rtol=1e-4, atol=1e-8)


def test_the_batch_size_does_not_matter(text):
    model = tiny_model(tiny_config("llama"))
    single = scored(model, text, batch_sequences=1)
    for batch_sequences in (2, 5, 64):
        other = scored(model, text, batch_sequences)
        for name in PARTS:
            torch.testing.assert_close(getattr(other, name), getattr(single, name), rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was(text):
    model = tiny_model(tiny_config("qwen2")).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scored(model, text)
    assert model.training
    assert not any(hooks(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hooks_go_even_if_the_pass_fails(text):
    model = tiny_model(tiny_config("llama"))
    beyond = PackedTokens(torch.full_like(text.input_ids, 320), text.position_ids)
    model.train()
    with pytest.raises(IndexError):
        scored(model, beyond)
    assert not any(hooks(model))
    assert model.training


def hooks(model):
    for module in model.modules():
        yield from (*module._forward_hooks, *module._forward_pre_hooks)


def test_dropout_does_not_reach_the_scores(text):
    config = tiny_config("llama", attention_dropout=0.5)
    still, training = (scored(model, text) for model in (tiny_model(config), tiny_model(config).train()))
    assert all(torch.equal(getattr(still, name), getattr(training, name)) for name in PARTS)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_neuron_that_is_zeroed_out_scores_zero_and_no_other_does(text, model_type):
    model = tiny_model(tiny_config(model_type))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[17] = 0
    assert (scored(model, text).neurons == 0).nonzero().tolist() == [[1, 17]]


def test_a_group_whose_output_is_zeroed_out_scores_zero_although_its_heads_do_not(text):
    model = tiny_model(tiny_config("llama"))
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight[:, 24:] = 0
    scores = scored(model, text)
    assert (scores.kv_groups == 0).nonzero().tolist() == [[2, 1]]
    assert (scores.heads > 0).all()


def test_a_group_whose_values_are_zeroed_out_scores_zero_with_all_its_heads(text):
    model = tiny_model(tiny_config("llama"))
    with torch.no_grad():
        model.model.layers[2].self_attn.v_proj.weight[:8] = 0
    scores = scored(model, text)
    assert (scores.kv_groups == 0).nonzero().tolist() == [[2, 0]]
    assert (scores.heads == 0).nonzero().tolist() == [[2, 0], [2, 1], [2, 2]]


def test_heads_and_channels_of_a_mixer_score_by_what_its_output_projection_reads(text):
    model = tiny_model(tiny_config("nemotron_h"))
    mixer, read = model.model.layers[0].mixer, []
    with torch.no_grad():
        mixer.in_proj.weight[3 * 8 : 4 * 8] = 0  # gates of the fourth head
        mixer.in_proj.weight[5:48:8] = 0  # of the sixth channel of each head
    with mixer.out_proj.register_forward_pre_hook(lambda _, args: read.append(args[0])):
        scores = scored(model, text, 1, batch_aggregation="mean", sequence_aggregation="mean")
    by_head = torch.cat(read).view(text.num_sequences, 12, 6, 8)
    torch.testing.assert_close(scores.mamba_heads[0], by_head.norm(dim=3).mean(dim=(0, 1)))
    torch.testing.assert_close(scores.mamba_channels[0], by_head.norm(dim=2).mean(dim=(0, 1)))
    assert (scores.mamba_heads[0] == 0).nonzero().tolist() == [[3]]
    assert (scores.mamba_channels[0] == 0).nonzero().tolist() == [[5]]
    assert scores.mamba_heads[1:].isnan().all()  # FFNs and attention
    assert scores.mamba_channels[1:].isnan().all()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_layer_that_changes_nothing_has_no_block_importance(text, model_type):
    model = tiny_model(tiny_config(model_type))
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    importance = scored(model, text).layers
    assert importance[1].abs() < 1e-6
    assert (importance[[0, 2, 3]] > 0.01).all()


def test_progress_counts_tokens_up_to_all_of_them(text):
    told = []
    model = tiny_model(tiny_config("llama", num_hidden_layers=1))
    architecture = architecture_of(model.config.to_dict(), layout_of(model.config.model_type))
    score_importance(
        model, architecture, layout_of("llama"), text, ImportanceSettings(), 2, lambda *pair: told.append(pair)
    )
    assert told == [(24, 60), (48, 60), (60, 60)]
