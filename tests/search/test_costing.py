import numpy as np
import pytest

from minitron_nas.errors import PlanError, SpaceError
from minitron_nas.families.catalog import layout_of
from minitron_nas.search.costing import Costing, Deployment
from minitron_nas.space.axes import load_space
from minitron_nas.space.enumerate import enumerate_candidates
from minitron_nas.space.size import Size

SPACE = load_space("smollm2-135m")
SOURCE, LAYOUT = SPACE.source_architecture(), layout_of("llama")


class ByLayers:
    """A millisecond a layer, two for a prompt, and ten more for each prompt."""

    def predict(self, columns):
        layers = columns["num_hidden_layers"] * 1e-3
        return {"prefill_seconds": 2 * layers + 0.01, "decode_seconds": layers}


COSTING = Costing(SOURCE, LAYOUT, 128, Deployment(8, 1000), ByLayers())


@pytest.mark.parametrize("written", ["94M", "memory=350MB", "decode=1.2x", "prefill=1.1x"])
def test_a_size_is_measured_as_the_column_of_its_unit_is_counted(written):
    size = Size.parse(written)
    found = enumerate_candidates(SPACE, size, SOURCE, LAYOUT, COSTING.measure(size))
    assert len(found.candidates) > 1
    columns = COSTING.columns(found.candidates.columns())
    assert found.values.tolist() == columns[size.column].tolist()
    low, high = SPACE.size_window(size)
    assert np.all((low <= found.values) & (found.values <= high))
    if size.unit == "memory":
        keys = columns["num_hidden_layers"] * columns["num_key_value_heads"] * 64
        assert found.values.tolist() == (2 * columns["num_parameters"] + 8000 * 2 * 2 * keys).tolist()


def test_memory_of_a_hybrid_holds_its_states_once_per_sequence():
    space = load_space("nemotron-nano-9b-v2")
    source, layout = space.source_architecture(), layout_of("nemotron_h")
    costing = Costing(source, layout, 128, Deployment(64, 1000))
    size = Size.parse("memory=20GB")
    found = enumerate_candidates(space, size, source, layout, costing.measure(size))
    columns = costing.columns(found.candidates.columns())
    states = columns["state_bytes_per_sequence"]
    assert len(set(states.tolist())) > 9
    keys_and_values = 1000 * columns["kv_cache_bytes_per_token"]
    assert found.values.tolist() == (2 * columns["num_parameters"] + 64 * (keys_and_values + states)).tolist()


def test_speeds_are_relative_to_the_first_teacher_and_not_to_the_model_that_is_cut():
    smaller = SOURCE.reshaped({"num_hidden_layers": 25})
    costing = Costing(smaller, LAYOUT, 128, Deployment(1, 1), ByLayers(), against=SOURCE)
    size = Size.parse("decode=1.5x")
    found = enumerate_candidates(SPACE, size, smaller, LAYOUT, costing.measure(size))
    assert set(found.candidates.columns()["num_hidden_layers"].tolist()) <= set(range(19, 21))


def test_without_a_latency_model_only_speeds_are_unknown():
    plain = Costing(SOURCE, LAYOUT, 128, Deployment(1, 4096))
    assert [plain.can_measure(Size.parse(each)) for each in ("94M", "memory=1GB", "decode=2x", "prefill=2x")] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(SpaceError, match=r"size decode=2.0x: that needs a latency model; `minitron-nas latency"):
        plain.measure(Size.parse("decode=2x"))


@pytest.mark.parametrize(("batch_size", "context_tokens"), [(1, 10**18), (10**30, 1), (10**6, 10**6)])
def test_memory_of_more_tokens_than_64_bits_can_count_is_refused(batch_size, context_tokens):
    with pytest.raises(PlanError, match=r"counted for [\d,]+ sequences of [\d,]+ tokens; ask for at most"):
        Deployment(batch_size, context_tokens)
    assert Deployment(10**4, 10**6)
