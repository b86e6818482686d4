"""What shapes take by a latency model: a sum that can be done by hand, and a file that says what it is for."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import LatencyError
from minitron_nas.evaluation.latency import (
    LatencyModel,
    PhaseModel,
    Residual,
    WholeModel,
)
from minitron_nas.evaluation.latency_terms import (
    Setting,
    layer_terms,
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
SHAPE = {
    "num_hidden_layers": 10,
    "hidden_size": 100,
    "intermediate_size": 300,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TEACHER = Architecture("llama", 30, 576, 1536, 9, 3, 64, 49152)


def phase(**changes) -> PhaseModel:
    terms = {"outside": {"constant": 0.5, "hidden": 0.01}, "layer": {"constant": 0.25, "ffn_weights": 1e-5}}
    return PhaseModel(**terms | {"r_squared": 0.99, "layer_error": 0.01} | changes)


def model(**changes) -> LatencyModel:
    given = {"setting": SETTING, "prefill": phase(), "decode": phase(layer={"queries": 1e-3, "keys": 1e-2})}
    return LatencyModel(**given | {"num_measurements": 48} | changes)


def columns(*shapes):
    return {name: np.array([shape[name] for shape in shapes]) for name in shapes[0]}


def test_a_shape_takes_its_head_and_as_many_layers_as_it_has():
    found = model().predict(columns(SHAPE, SHAPE | {"num_hidden_layers": 20}))
    outside, layer = 0.5 + 0.01 * 100, 0.25 + 1e-5 * 100 * 300
    np.testing.assert_allclose(found["prefill_seconds"], [outside + 10 * layer, outside + 20 * layer], rtol=1e-12)
    layer = 1e-3 * 4 * 64 + 1e-2 * 2 * 64
    np.testing.assert_allclose(found["decode_seconds"], [outside + 10 * layer, outside + 20 * layer], rtol=1e-12)


def test_experts_count_by_their_own_sizes():
    setting = SETTING.model_copy(update={"num_experts_per_tok": 2, "neurons": "moe_intermediate_size"})
    shape = SHAPE | {"num_experts": 8, "moe_intermediate_size": 50}
    coefficients = {"ffn_weights": 1e-3, "expert_weights": 1e-4, "router_weights": 1e-2}
    found = phase(layer=coefficients).seconds(columns(shape), setting)[1]
    assert found == pytest.approx([1e-3 * 100 * 50 + 1e-4 * 8 * 100 * 50 + 1e-2 * 8 * 100])
    assert set(layer_terms(setting)) - set(layer_terms(SETTING)) == {"experts", "router_weights", "expert_weights"}


def test_a_residual_multiplies_what_it_was_measured_at_and_leaves_what_is_far():
    points = ((np.log2(100), np.log2(300)),)
    residual = Residual(
        sizes=("hidden_size", "intermediate_size"), points=points, length_scales=(1.0, 1.0), weights=(np.log(1.5),)
    )
    far = SHAPE | {"hidden_size": 100 << 20, "intermediate_size": 300 << 20}
    np.testing.assert_allclose(residual.factor(columns(SHAPE, far)), [1.5, 1.0], rtol=1e-9)
    half_away = residual.factor(columns(SHAPE | {"hidden_size": 200}))
    distance = np.sqrt(5.0)
    expected = (1 + distance + distance**2 / 3) * np.exp(-distance)
    assert np.log(half_away) == pytest.approx(expected * np.log(1.5))
    assert residual.factor({name: sizes[:0] for name, sizes in columns(SHAPE).items()}).shape == (0,)


def test_a_file_gives_back_the_model_to_the_bit(tmp_path):
    whole = WholeModel(shape=SHAPE, prefill_seconds=4.0, decode_seconds=17.0)
    written = model(held_out=(whole,), prefill=phase(layer={"constant": 1 / 3}))
    written.save(tmp_path / "latency.json")
    assert LatencyModel.load(tmp_path / "latency.json") == written


def test_errors_on_whole_models_are_relative_to_what_was_measured():
    exact = model().predict(columns(SHAPE))
    whole = WholeModel(
        shape=SHAPE,
        prefill_seconds=exact["prefill_seconds"][0] / 1.1,
        decode_seconds=exact["decode_seconds"][0] * 1.25,
    )
    found = model(held_out=(whole,))
    assert found.errors("prefill") == pytest.approx([0.1])
    assert found.errors("decode") == pytest.approx([-0.2])
    assert len(model().errors("decode")) == 0


def test_a_model_made_for_something_else_is_refused_by_name():
    model().require_made_for(TEACHER, "bfloat16")
    other = replace(TEACHER, model_type="qwen3", head_dim=128)
    with pytest.raises(
        LatencyError, match=r"model_type='llama' where 'qwen3' is needed, head_dim=64 where 128 .* TEACHER --out FILE"
    ):
        model().require_made_for(other)
    with pytest.raises(LatencyError, match="dtype='bfloat16' where 'float32' is needed"):
        model().require_made_for(TEACHER, "float32")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "holds no latency model: .*No such file"),
        ("{", "holds no latency model"),
        ("[]", "latency.json: .*latency TEACHER"),
        (json.dumps({"format": 2}), r"latency.json: format: .*1"),
    ],
)
def test_what_is_no_latency_model_is_refused(tmp_path, content, match):
    file = tmp_path / "latency.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(LatencyError, match=match):
        LatencyModel.load(file)


@pytest.mark.slow
def test_a_million_shapes_take_seconds():
    rng = np.random.default_rng(0)
    most = {"num_hidden_layers": 32, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 16}
    shapes = {name: rng.integers(1, most.get(name, 8), 10**6) for name in SHAPE}
    points = tuple(tuple(row) for row in rng.uniform(0, 9, (30, 4)))
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    residual = Residual(sizes=names, points=points, length_scales=(1.0,) * 4, weights=(0.01,) * 30)
    started = time.perf_counter()
    found = model(prefill=phase(residual=residual), decode=phase(residual=residual)).predict(shapes)
    assert len(found["prefill_seconds"]) == 10**6
    assert time.perf_counter() - started < 10
