"""Stacks of layers: what one layer adds, and what is done about times that cannot be."""

from itertools import count

import pytest

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.kinds import shares
from minitron_nas.errors import LatencyError
from minitron_nas.evaluation import latency_bench
from minitron_nas.evaluation.latency_bench import MOST_TRIES, Bench, setting_of, stack_layers
from minitron_nas.evaluation.latency_design import Lengths
from minitron_nas.families.catalog import layout_of
from minitron_nas.testing.tiny import TINY_E2B, tiny_config

LENGTHS = Lengths(batch=2, prompt_tokens=8, context_tokens=4)
SHAPE = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}


def bench_of(model_type, **changes):
    config = tiny_config(model_type, **changes).to_dict()
    layout = layout_of(model_type)
    return Bench(config, architecture_of(config, layout), layout, LENGTHS)


@pytest.fixture
def known(monkeypatch):
    """Every model takes a second and a tenth of it a layer to prefill, half as long to decode."""
    models, calls, slow = [], count(), {}

    def player(model, lengths):
        models.append(model)

        def play():
            seconds = (1 + 0.1 * model.config.num_hidden_layers) * slow.get(next(calls), 1.0)
            return seconds, seconds / 2

        return play

    monkeypatch.setattr(latency_bench, "_player", player)
    return models, slow


def test_a_layer_is_what_the_longer_stack_takes_longer(known):
    models, slow = known
    bench = bench_of("llama", num_hidden_layers=10)
    slow |= dict.fromkeys((3, 4, 8), 16.0)  # hiccups
    found = bench.layer(SHAPE)
    assert [model.config.num_hidden_layers for model in models] == [2, 2, 4]
    assert [model.config.hidden_size for model in models] == [48, 24, 24]
    assert found.num_layers == 2
    assert found.layer == pytest.approx((0.1 / 1.2, 0.1 / 1.2))
    assert found.stack == pytest.approx((1.4 / 1.2, 1.4 / 1.2))
    assert found.reference_seconds == pytest.approx((1.2, 0.6))


def test_a_whole_model_has_its_own_number_of_layers(known):
    models, _ = known
    found = bench_of("llama", num_hidden_layers=10).whole(SHAPE | {"num_hidden_layers": 7})
    assert models[-1].config.num_hidden_layers == 7
    assert found.whole == pytest.approx((1.7 / 1.2, 1.7 / 1.2))


def test_a_layer_that_takes_no_time_is_measured_again_and_then_refused(known, monkeypatch):
    rounds = []
    turns = latency_bench.take_turns
    monkeypatch.setattr(
        latency_bench, "take_turns", lambda players, *rest: rounds.append(1) or turns([players[0]] * 3, *rest)
    )
    with pytest.raises(
        LatencyError, match=r"4 layers of .*'hidden_size': 24.* took no longer than 2, .*quieter machine"
    ):
        bench_of("llama", num_hidden_layers=10).layer(SHAPE)
    assert len(rounds) == MOST_TRIES


def test_stacks_hold_whole_periods_of_the_kinds_of_layers(known):
    models, _ = known
    kinds = (["sliding_attention"] * 2 + ["full_attention"]) * 4
    bench = bench_of("gemma3_text", num_hidden_layers=12, layer_types=kinds)
    bench.layer(SHAPE)
    assert [model.config.layer_types for model in models] == [kinds[:3], kinds[:3], kinds[:6]]


@pytest.mark.parametrize(("num_layers", "period", "expected"), [(30, 1, 6), (18, 6, 6), (4, 1, 1), (7, 7, 1)])
def test_a_stack_is_a_fifth_of_a_model(num_layers, period, expected):
    kinds = [str(layer % period) for layer in range(num_layers)]
    assert stack_layers({"layer_types": kinds}, num_layers) == expected


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "gpt2"])
def test_real_stacks_take_time(model_type):
    bench = bench_of(model_type)
    play = bench._stack({}, [0, 0])
    assert all(seconds > 0 for seconds in play())


def test_a_stack_of_a_hybrid_has_attention_even_if_that_is_not_its_rarest_kind():
    kinds = ["full_attention", "linear_attention", "full_attention", "full_attention"]
    bench = bench_of("granitemoehybrid", layer_types=kinds)  # of one layer a model would have the mixer alone
    assert bench.num_layers == 2
    assert {bench._source.kinds[layer] for layer in bench._of_each_kind(2)} == set(kinds)
    assert all(seconds > 0 for seconds in bench._reference())


def test_a_stack_of_a_hybrid_has_the_kinds_of_its_layers_in_their_shares():
    bench = bench_of("nemotron_h", layers_block_type=["linear_attention", "mlp"] * 4 + ["full_attention", "mlp"])
    assert bench.num_layers == 2
    play = bench._stack({}, bench._of_each_kind(5) * 2)
    assert [bench._source.kinds[layer] for layer in bench._of_each_kind(5)] == [
        "linear_attention", "mlp", "linear_attention", "mlp", "full_attention"
    ]  # fmt: skip
    assert all(seconds > 0 for seconds in play())


def test_layers_that_share_keys_come_last_in_a_stack_however_often_they_are_in_it(known):
    models, _ = known
    bench = bench_of("gemma4_text", **TINY_E2B)
    bench._stack({"intermediate_size": 40}, bench._of_each_kind(6) * 2)
    config = models[-1].config
    kinds = architecture_of(config.to_dict(), bench._layout).kinds
    assert config.num_kv_shared_layers == 4 == sum(map(shares, kinds))
    own, sharing = config.layer_types[:8], config.layer_types[8:]
    assert (own, sharing) == (["sliding_attention", "full_attention"] * 4, ["sliding_attention", "full_attention"] * 2)
    assert [layer.mlp.gate_proj.out_features for layer in models[-1].model.layers] == [40] * 8 + [80] * 4


def test_a_setting_says_what_is_measured():
    layout = layout_of("qwen3_moe")
    source = architecture_of(tiny_config("qwen3_moe").to_dict(), layout)
    setting = setting_of(source, layout, LENGTHS)
    assert (setting.model_type, setting.neurons, setting.num_experts_per_tok) == (
        "qwen3_moe",
        "moe_intermediate_size",
        2,
    )
    assert (setting.batch, setting.prompt_tokens, setting.context_tokens) == (2, 8, 4)
    assert setting.device
