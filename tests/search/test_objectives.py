import numpy as np
import pytest

from minitron_nas.search.objectives import Constraint


@pytest.mark.parametrize(
    ("text", "column", "relation", "limit", "deployment"),
    [
        ("decode_speedup >= 1.6", "decode_speedup", ">=", 1.6, (None, None)),
        ("decode_speedup>=2x", "decode_speedup", ">=", 2.0, (None, None)),
        ("memory_bytes <= 6GB at batch 8, context 32k", "memory_bytes", "<=", 6e9, (8, 32_000)),
        ("memory_bytes <= 1.5 GiB at context 4096", "memory_bytes", "<=", 1.5 * 2**30, (None, 4096)),
        ("num_active_parameters <= 3B", "num_active_parameters", "<=", 3e9, (None, None)),
        ("forward_flops_per_token <= 1e11", "forward_flops_per_token", "<=", 1e11, (None, None)),
        ("state_bytes_per_sequence <= 64MB", "state_bytes_per_sequence", "<=", 64e6, (None, None)),
        ("kv_cache_bytes_per_token <= 64kB", "kv_cache_bytes_per_token", "<=", 64e3, (None, None)),
        ("decode_seconds <= 20ms", "decode_seconds", "<=", 0.02, (None, None)),
        ("prefill_seconds <= 1.5", "prefill_seconds", "<=", 1.5, (None, None)),
    ],
)
def test_a_constraint_is_read_as_people_write_it(text, column, relation, limit, deployment):
    read = Constraint.parse(text)
    assert (read.column, read.relation, read.limit) == (column, relation, pytest.approx(limit))
    assert (read.batch_size, read.context_tokens) == deployment


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("decode_speedup > 1.6", "is no constraint; write such as"),
        ("speed >= 1.6", "with one of num_parameters"),
        ("memory_bytes <= 6 potatoes", "'potatoes' is no unit of bytes"),
        ("memory_bytes <= 6GB at batch many", "'batch many' is not such as 'batch 8'"),
        ("memory_bytes <= 6GB at batch 0", "'memory_bytes <= 6GB at batch 0': '0' is not a positive count"),
        ("num_parameters <= 0", "'num_parameters <= 0': '0' is not a positive count"),
        ("decode_speedup >= 2x at batch 8", "batch and context are for memory_bytes"),
        ("decode_seconds <= 20h", "such as 20ms"),
        ("", "is no constraint"),
    ],
)
def test_what_cannot_be_read_is_refused_with_an_example(text, said):
    with pytest.raises(ValueError, match=said):
        Constraint.parse(text)


def test_both_relations_hold_at_their_limit():
    values = np.array([1.0, 2.0, 3.0])
    assert Constraint.parse("decode_speedup >= 2").keeps(values).tolist() == [False, True, True]
    assert Constraint.parse("prefill_seconds <= 2").keeps(values).tolist() == [True, True, False]
